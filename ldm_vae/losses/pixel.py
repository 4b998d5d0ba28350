"""Distances between pixels, element by element."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_vae.bottlenecks.base import Latent
from ldm_vae.networks.network import Encoded
from ldm_vae.precision import at_least_float32
from ldm_vae.recipe import Config

PixelKind = Literal["l1", "l2", "charbonnier"]
LOG_VARIANCE_HEAD = "log_variance"  # the name of the head


class PixelConfig(Config):
    """The distance between pixels of image and reconstruction, in [-1, 1]."""

    kind: PixelKind = "l1"
    """With d the difference of two pixels: |d| (l1), d^2 (l2) or sqrt(d^2 + epsilon^2) (charbonnier)."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Loss per unit of distance, summed over the values of an image."""

    epsilon: Annotated[float, Field(gt=0)] = 1.0e-3
    """For charbonnier, the difference at which it turns from l2 to l1, for images in [-1, 1]."""

    learned_variance: bool = False
    """Learns the log-variance that divides pixel and perceptual loss (Dai & Wipf 2019)."""


def pixel_distance(reconstruction: Tensor, target: Tensor, kind: PixelKind, epsilon: float = 1.0e-3) -> Tensor:
    """|d|, d^2 or sqrt(d^2 + epsilon^2) of d = reconstruction - target.

    reconstruction, target: (B, C, H, W) in [-1, 1].
    Returns (B, C, H, W) in at least float32.
    Source: the third is of Charbonnier et al. 1994 (ICIP), with the epsilon of Lai et al. 2017, arXiv:1704.03915.
    """
    difference = at_least_float32(reconstruction) - at_least_float32(target)
    if kind == "l1":
        return difference.abs()
    if kind == "l2":
        return difference.square()
    return (difference.square() + epsilon**2).sqrt()


class LogVariance(nn.Module):
    """The learned log-variance of the likelihood: one number for all pixels, 0 at the start. A head of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, encoded: Encoded, latent: Latent) -> Tensor:
        return self.value
