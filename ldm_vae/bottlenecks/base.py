"""What every bottleneck does: it takes the encoder's output, and returns a latent with its price."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.noise import Noise
from ldm_vae.recipe import Config


class BottleneckConfig(Config):
    """The fields that every bottleneck has."""

    kind: str
    """The kind of bottleneck."""


@dataclass(frozen=True)
class Latent:
    """What a bottleneck returns.

    z: (B, c, *positions), the raw (unscaled) latent.
    nats: (B, groups, *positions), the price of each group in nats. A group is a channel, a level or a codebook; a group
    without positions has one price.
    stats: tensors that describe the distribution, by name. The Gaussian has "mean" and "logvar".
    sums: what the bottleneck learns from besides gradients, by name, summed over the images. A codebook has counts and
    sums of its vectors.
    sampled: computes log q(z|x) - log p(z) at this z, (B, groups, *positions), of which `nats` is the mean over z. None
    where `nats` is that itself.
    """

    z: Tensor
    nats: Tensor
    stats: Mapping[str, Tensor]
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    sampled: Callable[[], Tensor] | None = None

    @property
    def rates(self) -> Tensor:
        """(B, groups), nats per image and group."""
        return self.nats.flatten(2).sum(dim=2) if self.nats.ndim > 2 else self.nats

    @property
    def rate(self) -> Tensor:
        """(B,), nats per image."""
        return self.nats.flatten(1).sum(dim=1)

    @property
    def sampled_rate(self) -> Tensor:
        """(B,), log q(z|x) - log p(z) at this z, in nats: an estimate of `rate`, which importance weights need."""
        return (self.nats if self.sampled is None else self.sampled()).flatten(1).sum(dim=1)


class Bottleneck(nn.Module, ABC):
    """What stands between encoder and decoder.

    width: number of the encoder's output channels for each latent channel.
    gaussian: whether the encoder's output is mean and log-variance, and `stats` holds both.
    random: whether there is a posterior to sample from: `forward` draws z by one `noise.normal` of its shape.
    logvar_range: [low, high], natural logarithm, to which a Gaussian's log-variance is clamped; None of any other.
    """

    width: ClassVar[int]
    gaussian: ClassVar[bool] = False
    random: ClassVar[bool] = False
    logvar_range: tuple[float, float] | None = None

    def groups(self, latent_channels: int) -> int:
        """Number of groups whose rates are reported separately: the second dimension of `Latent.nats`."""
        return 1

    @abstractmethod
    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        """The latent.

        hidden: (B, width * c, *positions), the encoder's output, in at least float32, whatever the network runs in.
        noise: draws the latent; None takes the mode.
        """

    def sample(self, like: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Draws latents from the prior. Raises UserError where there is none.

        like: (B, c, *positions), which tells shape, type and device.
        temperature: factor on the standard deviation; below 1 draws lie nearer to the middle.
        """
        raise UserError(f"a sample of {type(self).__name__}", "it has no prior: give latents to decode")

    def learn(self, sums: Mapping[str, Tensor], noise: Noise) -> None:
        """Learns from the sums of a step, once, after the updates by gradients. Most bottlenecks learn nothing here.

        Whatever this changes must be a buffer, since the buffers are restored after a step that was not finite.

        sums: `Latent.sums`, summed over micro-batches and processes.
        noise: random numbers of the step. Draws from `noise.shared` are the same on all processes.
        """
