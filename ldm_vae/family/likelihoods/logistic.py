"""The discretized logistic likelihood, or a mixture of them: the mass of a logistic density around each level.

The lowest level takes the left tail, and the highest one the right tail. Channels are independent of each other; the
autoregression of PixelCNN++ over colours is left out. The difference of two sigmoids is written as a product,
sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a - b)), whose logarithm is exact where both are nearly equal.
Sources: Kingma et al. 2016, arXiv:1606.04934, appendix (one component); Salimans et al. 2017, arXiv:1701.05517,
section 2.1 (mixture), whose code takes the density at the centre where the difference is too small for float32.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_vae.family.likelihoods.base import open_uniform, refuse_outside
from ldm_vae.family.likelihoods.levels import Levels, nearest_level, value_of_level
from ldm_vae.family.likelihoods.spread import SpreadConfig, SpreadDensity
from ldm_vae.noise import Noise
from ldm_vae.precision import at_least_float32
from ldm_vae.recipe import Positive

STD_OF_SCALE = math.pi / math.sqrt(3)  # standard deviation of the logistic distribution of scale 1


class LogisticLikelihoodConfig(SpreadConfig):
    """A logistic distribution for each value, or a mixture, cut into levels. The scale is std * sqrt(3) / pi."""

    kind: Literal["logistic"] = "logistic"
    """The kind of likelihood."""

    components: Positive = 1
    """Components of the mixture of each value; the decoder gives their logits, too, where there are several."""

    levels: Levels = 256
    """Number of levels from black to white. A value has the probability of its nearest level."""


class LogisticLikelihood(SpreadDensity):
    """sum_m weight_m (F_m(x + half a level) - F_m(x - half a level)), F_m the distribution function of component m.

    The decoder's channels: M logits for each channel of the image where M > 1, then as many locations, then spreads.
    """

    volume = 1.0
    config: LogisticLikelihoodConfig

    def __init__(self, config: LogisticLikelihoodConfig, image_channels: int) -> None:
        super().__init__(config, image_channels, config.components)
        self.levels = config.levels

    def channels(self, image_channels: int) -> int:
        return self._logits(image_channels) + super().channels(image_channels)

    def observe(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        refuse_outside(image, "logistic")
        return image

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean over levels: each of them adds its height times the probability to lie above it."""
        log_weights, location, log_scale = self._mixture(parameters)
        inverse_scale = (-log_scale).exp()
        above = torch.zeros_like(location)
        for level in range(self.levels - 1):
            above = above + ((location - self._edge(level)) * inverse_scale).sigmoid()
        return (log_weights.exp() * above).sum(dim=2) * (2 / (self.levels - 1)) - 1

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        log_weights, location, log_scale = self._mixture(parameters)
        level = nearest_level(target, self.levels)[:, :, None]
        centre, half = value_of_level(level, self.levels, location.dtype), 1 / (self.levels - 1)
        inverse_scale = (-log_scale).exp()
        below_upper = F.logsigmoid((centre + half - location) * inverse_scale)
        above_lower = F.logsigmoid((location - centre + half) * inverse_scale)
        inside = below_upper + above_lower + (-torch.expm1(-2 * half * inverse_scale)).log()
        lowest, highest = level == 0, level == self.levels - 1
        log_mass = torch.where(lowest, below_upper, torch.where(highest, above_lower, inside))
        return (log_weights + log_mass).logsumexp(dim=2).flatten(1).sum(dim=1)

    def sample(self, parameters: Tensor, noise: Noise | None = None) -> Tensor:
        if noise is None:
            return self.mean(parameters)
        log_weights, location, log_scale = self._mixture(parameters)
        below = log_weights.exp().cumsum(dim=2).expand_as(location)
        chosen = (below <= noise.uniform("component", location[:, :, 0])[:, :, None]).sum(dim=2, keepdim=True)
        chosen = chosen.clamp(max=self.components - 1)  # rounding: the last sum may be below 1
        centre = location.gather(2, chosen)[:, :, 0]
        scale = log_scale.expand_as(location).gather(2, chosen)[:, :, 0].exp()
        drawn = centre + scale * open_uniform(noise, "pixels", centre).logit()
        return value_of_level(nearest_level(drawn, self.levels), self.levels, drawn.dtype)

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, locations and log-scales, (B, C, M, H, W) or what broadcasts to it; in at least float32."""
        logits, rest = at_least_float32(parameters).tensor_split([self._logits(self.image_channels)], dim=1)
        location, log_std = self.location_and_log_std(rest)
        location = self._by_component(location)
        log_weights = (
            self._by_component(logits).log_softmax(dim=2) if self.components > 1 else torch.zeros_like(location)
        )
        log_std = self._by_component(log_std) if self.config.variance == "pixel" else log_std[:, :, None]
        return log_weights, location, log_std - math.log(STD_OF_SCALE)

    def _logits(self, image_channels: int) -> int:
        """Number of channels that are logits of components."""
        return image_channels * self.components if self.components > 1 else 0

    def _by_component(self, values: Tensor) -> Tensor:
        """(B, C * M, H, W) -> (B, C, M, H, W)."""
        batch, _, height, width = values.shape
        return values.reshape(batch, self.image_channels, self.components, height, width)

    def _edge(self, level: int) -> float:
        """The value halfway between a level and the next."""
        return (2 * level + 1) / (self.levels - 1) - 1
