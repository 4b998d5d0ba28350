"""The categorical likelihood: a logit for each level of each value, with no notion of which levels are near each other.

Source: van den Oord et al. 2016, arXiv:1601.06759, section 3.3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_vae.family.likelihoods.base import Density, LikelihoodConfig, refuse_outside
from ldm_vae.family.likelihoods.levels import Levels, nearest_level, value_of_level
from ldm_vae.noise import Noise
from ldm_vae.precision import at_least_float32


class CategoricalLikelihoodConfig(LikelihoodConfig):
    """A probability for each level of each value: the decoder gives their logits."""

    kind: Literal["categorical"] = "categorical"
    """The kind of likelihood."""

    levels: Levels = 256
    """Number of levels from black to white. A value has the probability of its nearest level."""


class CategoricalLikelihood(Density):
    """softmax(logits) over the levels of each value. The logits of a channel of the image stand side by side."""

    volume = 1.0

    def __init__(self, config: CategoricalLikelihoodConfig, image_channels: int) -> None:
        super().__init__(image_channels)
        self.levels = config.levels

    def channels(self, image_channels: int) -> int:
        return image_channels * self.levels

    def observe(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        refuse_outside(image, "categorical")
        return image

    def mean(self, parameters: Tensor) -> Tensor:
        probabilities = self._logits(parameters).softmax(dim=1)
        values = value_of_level(torch.arange(self.levels, device=parameters.device), self.levels, probabilities.dtype)
        return (probabilities * values[:, None, None, None]).sum(dim=1)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        level = nearest_level(target, self.levels)
        return -F.cross_entropy(self._logits(parameters), level, reduction="none").flatten(1).sum(dim=1)

    def sample(self, parameters: Tensor, noise: Noise | None = None) -> Tensor:
        if noise is None:
            return self.mean(parameters)
        below = self._logits(parameters).softmax(dim=1).cumsum(dim=1)
        drawn = noise.uniform("pixels", below[:, 0])
        level = (below <= drawn[:, None]).sum(dim=1).clamp(max=self.levels - 1)  # rounding: the last sum may be below 1
        return value_of_level(level, self.levels, below.dtype)

    def _logits(self, parameters: Tensor) -> Tensor:
        """(B, C * levels, H, W) -> (B, levels, C, H, W), in at least float32."""
        batch, _, height, width = parameters.shape
        logits = at_least_float32(parameters).reshape(batch, self.image_channels, self.levels, height, width)
        return logits.transpose(1, 2)
