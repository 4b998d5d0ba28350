"""The Laplace likelihood: absolute errors, divided by a scale. Its samples have sharper edges than a Gaussian's."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from ldm_vae.family.likelihoods.base import LEVEL_WIDTH, open_uniform
from ldm_vae.family.likelihoods.spread import SpreadConfig, SpreadDensity
from ldm_vae.noise import Noise


class LaplaceLikelihoodConfig(SpreadConfig):
    """A Laplace distribution for each value: the decoder gives its mean, and its variance where that is not fixed or
    shared. Its scale is std / sqrt(2)."""

    kind: Literal["laplace"] = "laplace"
    """The kind of likelihood."""


class LaplaceLikelihood(SpreadDensity):
    """Laplace(mean, std / sqrt(2)), value by value."""

    volume = LEVEL_WIDTH

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        mean, log_std = self.location_and_log_std(parameters)
        log_scale = log_std - 0.5 * math.log(2)
        distance = (target - mean).abs() * (-log_scale).exp()
        return -(distance + log_scale + math.log(2)).flatten(1).sum(dim=1)

    def sample(self, parameters: Tensor, noise: Noise | None = None) -> Tensor:
        mean, log_std = self.location_and_log_std(parameters)
        if noise is None:
            return mean
        centred = open_uniform(noise, "pixels", mean) - 0.5  # the inverse of the distribution function takes it
        return mean - (log_std - 0.5 * math.log(2)).exp() * centred.sign() * (-2 * centred.abs()).log1p()
