"""Exponential moving average of the autoencoder's weights: the weights that are validated and exported."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ldm_vae.networks.network import Network
from ldm_vae.recipe import Config


class EmaConfig(Config):
    """The exponential moving average of the autoencoder's weights, which is validated and exported."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share of the average that each optimizer step keeps, after the warm-up; 0: the weights themselves."""

    warmup: bool = True
    """Keeps at most (1 + n) / (10 + n) at step n, so that the first weights are soon forgotten."""


class Ema:
    """A second autoencoder whose weights are the average, in at least float32; `model` is ready to be called."""

    def __init__(self, model: Network, config: EmaConfig) -> None:
        self.config = config
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.average: list[Tensor] = list(self.model.parameters())
        self.source: list[Tensor] = list(model.parameters())
        self.trained = model

    def decay(self, step: int) -> float:
        return min(self.config.decay, (1 + step) / (10 + step)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, finite: Tensor, step: int) -> None:
        """average += (1 - decay) (weights - average); the average stays as it is where `finite` is false.

        Buffers (codebooks, statistics of batch norm) are copied: they are averages already.
        """
        difference = torch._foreach_sub(self.source, self.average)
        torch._foreach_mul_(difference, finite * (1.0 - self.decay(step)))
        torch._foreach_add_(self.average, difference)
        # Asked for anew each time: `module.to(device)`, which accelerate calls, puts other tensors in their place.
        for copied, buffer in zip(self.model.buffers(), self.trained.buffers(), strict=True):
            copied.copy_(buffer)
