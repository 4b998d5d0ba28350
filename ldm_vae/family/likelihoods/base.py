"""What every likelihood of the family does: it is a density of an image, with draws and a mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.noise import Noise
from ldm_vae.precision import at_least_float32
from ldm_vae.recipe import Config

LEVEL_WIDTH = 2 / 255  # distance of two levels of 8 bits, where images lie in [-1, 1]
SMALLEST_UNIFORM = 2.0**-25  # half a step of the uniform draws, which are multiples of 2^-24
ROUNDING = 1e-6  # how far arithmetic in float32 may take a value out of [-1, 1]


class LikelihoodConfig(Config):
    """The fields that every likelihood has."""

    kind: str
    """The kind of likelihood."""


class Density(nn.Module, ABC):
    """p(x | z): the distribution of an image's values, which are independent given the parameters from the decoder.

    A network completes its decoder's output before anything else reads it:
    decoder -> (B, channels, H, W) -> `complete` -> parameters (B, P, H, W) -> `mean`, `log_prob`, `sample`.

    image_channels: C, channels of the image.
    volume: what a level of 8 bits takes, in the unit of the density: its width for densities on [-1, 1], and 1 where
    `log_prob` is that of a probability. `bits_per_dimension` needs it.
    """

    volume: ClassVar[float]

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.image_channels = image_channels

    @abstractmethod
    def channels(self, image_channels: int) -> int:
        """Channels of the decoder's own output for images of `image_channels` channels."""

    def complete(self, parameters: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, P, H, W).

        It appends what all values share, so that all gradients pass through one tensor.
        """
        return parameters

    def observe(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> what the encoder sees and the decoder must explain, in the same shape and range.

        noise: draws it, where it is random; None takes the most probable.
        Raises UserError for values that the likelihood gives no probability.
        """
        return image

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """(B, P, H, W) -> the mean image, (B, C, H, W)."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """ln p(target), (B,), in nats, summed over each image, in at least float32.

        parameters: (B, P, H, W).
        target: (B, C, H, W), as `observe` returns it.
        """

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Noise | None = None) -> Tensor:
        """(B, P, H, W) -> an image drawn from the distribution, (B, C, H, W), in at least float32.

        noise: draws it; None takes the mean.
        """


def bits_per_dimension(nats: Tensor, values: int, volume: float) -> Tensor:
    """-log2 of the probability of an 8-bit image, per value, in the shape of `nats`.

    nats: -ln p of an image, or a bound of it.
    values: number of values of an image, C*H*W.
    volume: `Density.volume`. A density times the width of a level stands for the probability of the level, which is
    no bound: only images with uniform noise of that width give one.
    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    return (nats / values - math.log(volume)) / math.log(2)


def open_uniform(noise: Noise, purpose: str, like: Tensor) -> Tensor:
    """Draws from (0, 1), of which neither end has a finite logarithm of its odds; in at least float32."""
    return noise.uniform(purpose, at_least_float32(like)).clamp(min=SMALLEST_UNIFORM)


def refuse_outside(image: Tensor, kind: str) -> None:
    """Raises UserError where values do not lie in [-1, 1].

    kind: the likelihood that gives them no probability, for the error.
    """
    low, high = (value.item() for value in torch.aminmax(image.detach()))
    if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # not a number is outside, too
        raise UserError(
            f"a {kind} likelihood needs data in [0, 1], and these go from {(low + 1) / 2:.6g} to {(high + 1) / 2:.6g}",
            "scale the data so that black is 0 and white is 1, or take model.likelihood.kind=gaussian",
        )
