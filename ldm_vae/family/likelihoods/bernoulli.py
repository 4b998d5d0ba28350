"""The Bernoulli likelihood on logits: the probability of white at each pixel.

Pixels are 0 or 1 to it. Grey ones have no probability; the usual cross-entropy is then no log-likelihood, for the
distribution is not normalised over [0, 1]. `binarize` makes them black or white.
Sources: Kingma & Welling 2013, arXiv:1312.6114, appendix C.1; Salakhutdinov & Murray 2008 (stochastic binarization);
Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845 (what goes wrong with grey).
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_vae.family.likelihoods.base import Density, LikelihoodConfig, refuse_outside
from ldm_vae.noise import Noise
from ldm_vae.precision import at_least_float32
from ldm_vae.ranks import is_first_to_report

logger = logging.getLogger(__name__)
GREY = (
    "the images have grey pixels, and a Bernoulli likelihood knows black and white alone: its log p of them is a "
    "cross-entropy, and no log-likelihood; set model.likelihood.binarize to threshold or stochastic, or take another"
)


class BernoulliLikelihoodConfig(LikelihoodConfig):
    """A probability of white for each value: the decoder gives its logit."""

    kind: Literal["bernoulli"] = "bernoulli"
    """The kind of likelihood."""

    binarize: Literal["none", "threshold", "stochastic"] = "none"
    """What becomes of grey pixels. none: nothing, with a warning. threshold: white from the middle on. stochastic:
    white with the probability of their brightness, drawn anew in each step."""


class BernoulliLikelihood(Density):
    """Bernoulli(sigmoid(logit)) of (value + 1) / 2, value by value."""

    volume = 1.0

    def __init__(self, config: BernoulliLikelihoodConfig, image_channels: int) -> None:
        super().__init__(image_channels)
        self.config = config
        self.warned = False

    def channels(self, image_channels: int) -> int:
        return image_channels

    def observe(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        refuse_outside(image, "bernoulli")
        if self.config.binarize == "none":
            self._warn_of_grey(image)
            return image
        if self.config.binarize == "threshold" or noise is None:
            return torch.where(image >= 0, 1.0, -1.0).to(image.dtype)
        white = noise.uniform("binarize", at_least_float32(image)) < _brightness(image)
        return torch.where(white, 1.0, -1.0).to(image.dtype)

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.tanh(parameters / 2)  # 2 sigmoid(logit) - 1

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        logits = at_least_float32(parameters)
        white = _brightness(target).to(logits.dtype)
        return -F.binary_cross_entropy_with_logits(logits, white, reduction="none").flatten(1).sum(dim=1)

    def sample(self, parameters: Tensor, noise: Noise | None = None) -> Tensor:
        logits = at_least_float32(parameters)
        if noise is None:
            return self.mean(logits)
        return torch.where(noise.uniform("pixels", logits) < logits.sigmoid(), 1.0, -1.0).to(logits.dtype)

    def _warn_of_grey(self, image: Tensor) -> None:
        """Warns once."""
        if not self.warned and bool((image.abs() != 1).any()):
            self.warned = True
            if is_first_to_report(GREY):
                logger.warning(GREY)


def _brightness(image: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], in at least float32."""
    return (at_least_float32(image) + 1) / 2
