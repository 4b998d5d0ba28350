"""A second adversary is one class: here a critic that tells latents from the prior (Makhzani et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train.build
from ldm_vae.losses.adversary import Adversary, Pair
from ldm_vae.networks.network import NetworkConfig, Output
from ldm_vae.noise import Noise
from tests.train.conftest import Holds


class Prior(Adversary):
    name, felt, balance = "prior", "latent", "encoder"

    def build(self, model: NetworkConfig) -> nn.Module:
        body, head = nn.Conv2d(model.latent_channels, 16, 1), nn.Conv2d(16, 1, 1)
        return nn.Sequential(body.requires_grad_(False), nn.ReLU(), head)  # a frozen backbone under a trained head

    def learns(self, step: int) -> bool:
        return step >= 1

    def weight(self, step: int) -> float:
        return 0.1 if step >= 2 else 0.0

    def term(self, network: nn.Module, output: Output) -> Tensor:
        return F.softplus(-network(output.latent)).flatten(1).mean(dim=1)

    def pair(self, output: Output, noise: Noise) -> Pair:
        latent = output.latent.detach()
        return noise.normal("prior", latent), latent

    def loss(self, network: nn.Module, pair: Pair, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        prior, latent = network(torch.cat(pair)).chunk(2)
        return F.softplus(-prior).mean() + F.softplus(latent).mean(), {"logit": latent.detach().mean()}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    first = train.build.build_adversaries
    monkeypatch.setattr(train.build, "build_adversaries", lambda recipe: [*first(recipe), Prior()])


@pytest.mark.parametrize("order", ["shared", pytest.param("compvis", marks=pytest.mark.slow)])
def test_trains_on_one_and_two_processes_and_resumes(holds: Holds, tmp_path: Path, order: str) -> None:
    end = holds(f"discriminator.order={order}")
    assert "prior/2.weight" in end and "prior/0.weight" not in end  # the frozen part is in no checkpoint
    rows = (tmp_path / "one" / "metrics.jsonl").read_text()
    assert all(f'"{name}/prior"' in rows for name in ("generator", "discriminator", "logit", "gradient_norm"))
