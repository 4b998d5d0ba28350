"""The Gaussian likelihood: squared errors, divided by a variance."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from ldm_vae.family.likelihoods.base import LEVEL_WIDTH
from ldm_vae.family.likelihoods.spread import SpreadConfig, SpreadDensity
from ldm_vae.noise import Noise


class GaussianLikelihoodConfig(SpreadConfig):
    """A Gaussian for each value: the decoder gives its mean, and its variance where that is not fixed or shared."""

    kind: Literal["gaussian"] = "gaussian"
    """The kind of likelihood."""


class GaussianLikelihood(SpreadDensity):
    """N(mean, std^2), value by value."""

    volume = LEVEL_WIDTH

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        mean, log_std = self.location_and_log_std(parameters)
        distance = (target - mean) * (-log_std).exp()
        return -(0.5 * distance.square() + log_std + 0.5 * math.log(2 * math.pi)).flatten(1).sum(dim=1)

    def sample(self, parameters: Tensor, noise: Noise | None = None) -> Tensor:
        mean, log_std = self.location_and_log_std(parameters)
        return mean if noise is None else mean + log_std.exp() * noise.normal("pixels", mean)
