"""A new bottleneck is one class, its configuration and a line in the table: here a codebook with straight-through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor

from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.noise import Noise
from ldm_vae.parts import BOTTLENECKS
from ldm_vae.recipe import Kind
from tests.train.conftest import Holds

# An adaptive weight is each micro-batch's own, and would differ between two micro-batches of 2 and four of 1.
ACCUMULATED = ("optimizer.accumulation=2", "discriminator.adaptive=false")


class CodesConfig(BottleneckConfig):
    kind: Literal["codes"] = "codes"
    codes: int = 8


class Codes(Bottleneck):
    """Each number of the latent becomes the nearest of a few values, which follow their means (van den Oord 2017)."""

    width = 1

    def __init__(self, config: CodesConfig) -> None:
        super().__init__()
        self.values = torch.nn.Buffer(torch.linspace(-1, 1, config.codes))
        self.used = torch.nn.Buffer(torch.zeros(config.codes, dtype=torch.bool))  # 1 byte a value

    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        hidden = hidden if noise is None else hidden + 0.01 * noise.uniform("dither", hidden)
        ids = (hidden.detach()[..., None] - self.values).abs().argmin(dim=-1)
        chosen = torch.nn.functional.one_hot(ids, len(self.values)).to(hidden).flatten(0, -2)
        nats = hidden.new_full((len(hidden), 1), hidden[0].numel() * math.log(len(self.values)))
        sums = {"count": chosen.sum(dim=0), "sum": chosen.T @ hidden.detach().flatten()}
        return Latent(hidden + (self.values[ids] - hidden).detach(), nats, {}, sums)

    def learn(self, sums: Mapping[str, Tensor], noise: Noise) -> None:
        mean = torch.where(sums["count"] > 0, sums["sum"] / sums["count"].clamp(min=1), self.values)
        self.values.lerp_(mean + 1e-3 * float(noise.shared("codes").standard_normal()), 0.1)
        self.used.logical_or_(sums["count"] > 0)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOTTLENECKS.table, "codes", Kind(__name__, "CodesConfig", "Codes"))


def test_trains_on_one_and_two_processes_and_resumes(holds: Holds) -> None:
    end = holds("model.bottleneck={kind: codes}", *ACCUMULATED)
    assert end["model/bottleneck.used"].any() and (end["model/bottleneck.values"] != torch.linspace(-1, 1, 8)).any()
    assert torch.equal(end["ema/bottleneck.values"], end["model/bottleneck.values"])  # what is validated and exported
