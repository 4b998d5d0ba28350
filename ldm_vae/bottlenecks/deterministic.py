"""The deterministic bottleneck: the latent is the encoder's output, and costs nothing."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.noise import Noise
from ldm_vae.precision import at_least_float32


class DeterministicConfig(BottleneckConfig):
    """A plain autoencoder: no noise, no rate, one output of the encoder per latent channel."""

    kind: Literal["deterministic"] = "deterministic"
    """The kind of bottleneck."""


class Deterministic(Bottleneck):
    """The latent is the encoder's output (B, C, h, w), in at least float32."""

    width = 1

    def __init__(self, config: DeterministicConfig) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        """The latent.

        hidden: (B, C, h, w).
        noise: unused.
        """
        z = at_least_float32(hidden)
        return Latent(z, z.new_zeros(len(z), 1), {})
