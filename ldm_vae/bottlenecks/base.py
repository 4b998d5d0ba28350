"""What a bottleneck is to everybody else: hidden features in, a latent and its price out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ldm_vae.noise import Noise
from ldm_vae.recipe import Config


class BottleneckConfig(Config):
    """What every bottleneck is configured by."""

    kind: str
    """The kind of bottleneck."""


@dataclass(frozen=True)
class Latent:
    """What a bottleneck makes of the encoder's output.

    z: (B, c, *positions), raw (unscaled).
    nats: (B, groups, *positions), the price of each group (a channel, a level, a codebook), at each position where it
    has positions, in nats.
    stats: what the bottleneck knows about its distribution, by name (the Gaussian: "mean" and "logvar").
    sums: what it learns from besides gradients, by name, added up over the images (a codebook: counts and sums).
    """

    z: Tensor
    nats: Tensor
    stats: Mapping[str, Tensor]
    sums: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rates(self) -> Tensor:
        """(B, groups), nats per image and group."""
        return self.nats.flatten(2).sum(dim=2) if self.nats.ndim > 2 else self.nats

    @property
    def rate(self) -> Tensor:
        """(B,), nats per image."""
        return self.nats.flatten(1).sum(dim=1)


class Bottleneck(nn.Module, ABC):
    """A bottleneck.

    width: outputs of the encoder per latent channel.
    gaussian: whether the encoder's output is mean and log-variance, and `stats` holds both.
    """

    width: ClassVar[int]
    gaussian: ClassVar[bool] = False

    def groups(self, latent_channels: int) -> int:
        """Parts that the rate is told of separately: the second dimension of `Latent.nats`."""
        return 1

    @abstractmethod
    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        """hidden: (B, width * c, *positions).   noise: of the draw; None gives the mode."""

    def learn(self, sums: Mapping[str, Tensor], noise: Noise) -> None:
        """Learns from the sums of a whole step, once, after the updates by gradients; most bottlenecks learn nothing.

        sums: of `Latent.sums`, added up over micro-batches and processes.
        noise: of the step. Draws from `noise.shared` are the same on all processes.
        What it changes must be buffers: a step that was not finite is undone in them.
        """
