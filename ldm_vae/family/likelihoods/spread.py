"""Standard deviations of a decoder's distribution: fixed, learned for all values at once, or learned for each value.

A deviation of its own for each value has no lower bound in the usual formulation. Where data are constant, such as the
edges of digits, the density then grows without end, its gradients outweigh all others, and the mean gets worse. A
smooth bound prevents that: the logarithm of the deviation runs through a sigmoid between the ends of `std_range`. What
counts is the lower end: at 0.01 the mean of small digits is as bad as without bounds. A shared deviation needs none,
because it is the error of all values together.
Sources: Mattei & Frellsen 2018, arXiv:1802.04826 (the density is unbounded); Rybkin et al. 2021, arXiv:2006.13202 (one
deviation for all values, learned).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ldm_vae.family.likelihoods.base import Density, LikelihoodConfig
from ldm_vae.precision import at_least_float32

Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SpreadConfig(LikelihoodConfig):
    """The fields of likelihoods that have a location and a spread. All deviations are standard deviations."""

    variance: Literal["fixed", "shared", "pixel"] = "shared"
    """fixed: `std` everywhere. shared: learned, one for all values of all images. pixel: the decoder gives each value
    its own."""

    std: Deviation = 1.0
    """The standard deviation, in units of images in [-1, 1]; a learned one starts there."""

    std_range: tuple[Deviation, Deviation] | None = (0.1, 10.0)
    """[low, high], the smooth bound of the standard deviation with `variance: pixel`; null for none."""

    @model_validator(mode="after")
    def _check_range(self) -> SpreadConfig:
        if self.variance == "pixel" and self.std_range is not None:
            low, high = self.std_range
            if not low < self.std < high:
                raise ValueError("give std_range as [low, high] with low < std < high")
        return self


class SpreadDensity(Density):
    """A density with a location and a standard deviation, element by element.

    The parameters are locations, then, for `variance: pixel`, as many spreads; `complete` appends the shared one.

    components: locations of each value.
    """

    def __init__(self, config: SpreadConfig, image_channels: int, components: int = 1) -> None:
        super().__init__(image_channels)
        self.config = config
        self.components = components
        self.shared = nn.Parameter(torch.zeros(())) if config.variance == "shared" else None

    def channels(self, image_channels: int) -> int:
        return image_channels * self.components * (2 if self.config.variance == "pixel" else 1)

    def complete(self, parameters: Tensor) -> Tensor:
        if self.shared is None:
            return parameters
        batch, _, height, width = parameters.shape
        return torch.cat([parameters, self.shared.to(parameters.dtype).expand(batch, 1, height, width)], dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters[:, : self.image_channels]

    def location_and_log_std(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters -> locations (B, C * components, H, W) and ln std, which broadcasts to them; at least float32."""
        location, raw = at_least_float32(parameters).tensor_split([self.image_channels * self.components], dim=1)
        if self.config.variance == "fixed":
            return location, torch.full_like(location[:, :1], math.log(self.config.std))
        bounds = self.config.std_range if self.config.variance == "pixel" else None
        return location, log_deviation(raw, self.config.std, bounds)


def log_deviation(raw: Tensor, start: float, bounds: tuple[float, float] | None) -> Tensor:
    """ln of a learned standard deviation, in the shape of `raw`.

    raw: any real number, such as an output of a decoder; 0 gives ln `start`.
    bounds: low and high, the ends of a sigmoid; None for none, where `raw` is added to ln `start`.
    """
    if bounds is None:
        return raw + math.log(start)
    low, high, middle = (math.log(value) for value in (*bounds, start))
    return low + (high - low) * torch.sigmoid(raw + math.log((middle - low) / (high - middle)))
