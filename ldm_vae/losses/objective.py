"""What the autoencoder minimises: names the terms, weights them, adds them; the only file that knows them all.

    total = nll + weight_rate * rate + factor(step) * weight_gan * lambda * generator
    nll   = (weight_pixel * pixel + weight_perceptual * perceptual) / e^s + n s,   s the learned log-variance (or 0)

in CompVis' units: every term is summed over an image's n = C*H*W elements (LPIPS counts once per element), the mean is
taken over images. lambda is the adaptive weight (`losses/adaptive.py`), or 1.
Source: Esser et al. 2021 (arXiv:2012.09841), eq. 7; CompVis/latent-diffusion, contperceptual.py.

Everything that is felt through the reconstruction is differentiated down to the reconstruction alone. One backward pass
of LPIPS and one of the discriminator then serve both the adaptive weight and the update, and the networks are traversed
once, with the sum of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.adaptive import adaptive_weight, last_layer_gradient
from ldm_vae.losses.adversarial import DiscriminatorConfig, adversarial_factor, discriminator_loss, generator_loss
from ldm_vae.losses.perceptual import LPIPS, PerceptualConfig
from ldm_vae.losses.pixel import PixelConfig, pixel_distance
from ldm_vae.losses.rate import RateConfig, rate, rate_weight
from ldm_vae.networks.kl import Output
from ldm_vae.precision import at_least_float32
from ldm_vae.recipe import Config
from ldm_vae.schedules import Schedule

Critic = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> logits (B, 1, h, w)


class LossConfig(Config):
    """What the autoencoder minimises beside the adversarial loss: the weighted sum of these terms."""

    pixel: PixelConfig = PixelConfig()
    """Distance between pixels."""

    perceptual: PerceptualConfig = PerceptualConfig()
    """LPIPS, the learned perceptual distance."""

    rate: RateConfig = RateConfig()
    """The price of information in the latent."""


class Term(Protocol):
    def __call__(self, output: Output, batch: Batch, step: int) -> Tensor:
        """(B,), summed per image, in at least float32."""


@dataclass(frozen=True)
class Weighted:
    name: str
    term: Term
    weight: Schedule


@dataclass(frozen=True)
class Losses:
    """values: name -> scalar for the log, unweighted means over images: the likelihood's terms and the total per
    element (so: mean absolute error, LPIPS distance), the rate in nats per image.
    roots, gradients: what `torch.autograd.backward` takes to accumulate the gradient of the total."""

    values: dict[str, Tensor]
    roots: list[Tensor]
    gradients: list[Tensor]


class Objective:
    """The weighted sum of terms, with its gradient at the reconstruction.

    likelihood: terms of the reconstruction, balanced against the discriminator.   regularizers: all others.
    last_layer_shape: shape of the weight of the decoder's last convolution.
    reduce: mean of a tensor over ranks, for the adaptive weight.
    """

    def __init__(
        self,
        likelihood: list[Weighted],
        regularizers: list[Weighted],
        adversarial: DiscriminatorConfig | None,
        last_layer_shape: torch.Size,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self.likelihood = likelihood
        self.regularizers = regularizers
        self.adversarial = adversarial
        self.last_layer_shape = last_layer_shape
        self.reduce = reduce

    def trains_discriminator(self, step: int) -> bool:
        return self.adversarial is not None and step >= self.adversarial.start

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of real and reconstructed images -> scalar, the discriminator's own loss."""
        assert self.adversarial is not None
        return discriminator_loss(real, fake, self.adversarial.loss).mean()

    def __call__(self, output: Output, batch: Batch, critic: Critic, step: int) -> Losses:
        """critic: the discriminator with its own parameters frozen; called only while the generator feels it."""
        reconstruction = at_least_float32(output.reconstruction)
        leaf = reconstruction.detach().requires_grad_()
        values: dict[str, Tensor] = {}

        elements = leaf[0].numel()
        nll = self._add(self.likelihood, replace(output, reconstruction=leaf), batch, step, values, unit=elements)
        if output.log_variance is not None:
            nll = nll / output.log_variance.exp() + elements * output.log_variance
            values["log_variance"] = output.log_variance
            gradient, gradient_log_variance = torch.autograd.grad(nll, [leaf, output.log_variance])
        else:
            (gradient,) = torch.autograd.grad(nll, [leaf])
        total = nll.detach()

        factor = 0.0 if self.adversarial is None else adversarial_factor(self.adversarial, step)
        if self.adversarial is not None and factor > 0.0:
            generator = generator_loss(critic(leaf), self.adversarial.loss).mean()
            (gradient_generator,) = torch.autograd.grad(generator, [leaf])
            weight = factor * self.adversarial.weight * self._balance(output, gradient, gradient_generator)
            gradient = gradient + weight * gradient_generator
            total = total + weight * generator
            values |= {"generator": generator, "generator_weight": weight}

        roots, gradients = [reconstruction], [gradient]
        if self.regularizers:
            regularization = self._add(self.regularizers, output, batch, step, values, unit=1)
            total = total + regularization
            if regularization.requires_grad:  # not the rate of a frozen encoder
                roots.append(regularization)
                gradients.append(torch.ones_like(regularization))
        if output.log_variance is not None:
            roots.append(output.log_variance)
            gradients.append(gradient_log_variance)
        values["total"] = total / elements
        return Losses({name: value.detach() for name, value in values.items()}, roots, gradients)

    def _add(
        self, terms: list[Weighted], output: Output, batch: Batch, step: int, values: dict[str, Tensor], unit: int
    ) -> Tensor:
        """The weighted sum of the terms, means over images; each is noted in `values`, divided by `unit`."""
        total = torch.zeros((), dtype=output.posterior.rate.dtype, device=output.posterior.rate.device)
        for weighted in terms:
            value = weighted.term(output, batch, step).mean()
            values[weighted.name] = value / unit
            total = total + weighted.weight(step) * value
        return total

    def _balance(self, output: Output, gradient: Tensor, gradient_generator: Tensor) -> Tensor:
        assert self.adversarial is not None
        if not self.adversarial.adaptive:
            return torch.ones((), device=gradient.device, dtype=gradient.dtype)
        hidden = output.last_hidden.detach()
        return adaptive_weight(
            last_layer_gradient(hidden, gradient, self.last_layer_shape),
            last_layer_gradient(hidden, gradient_generator, self.last_layer_shape),
            reduce=self.reduce,
        )


def build_objective(
    loss: LossConfig,
    discriminator: DiscriminatorConfig | None,
    lpips: LPIPS | None,
    last_layer_shape: torch.Size,
    reduce: Callable[[Tensor], Tensor],
) -> Objective:
    """The objective of a recipe. A term whose weight is 0 is left out: it costs nothing and is absent from the log.

    lpips: the perceptual network, or None where there is no such term.   reduce: mean of a tensor over ranks.
    """
    likelihood, regularizers = [], []
    if loss.pixel.weight > 0:
        likelihood.append(Weighted("pixel", _pixel_term(loss.pixel), lambda step: loss.pixel.weight))
    if lpips is not None:
        likelihood.append(Weighted("perceptual", _perceptual_term(lpips), lambda step: loss.perceptual.weight))
    if loss.rate.weight > 0:
        regularizers.append(Weighted("rate", rate, lambda step: rate_weight(loss.rate, step)))
    return Objective(likelihood, regularizers, discriminator, last_layer_shape, reduce)


def _pixel_term(config: PixelConfig) -> Term:
    def pixel(output: Output, batch: Batch, step: int) -> Tensor:
        return pixel_distance(output.reconstruction, output.target, config.kind, config.epsilon).sum(dim=(1, 2, 3))

    return pixel


def _perceptual_term(lpips: LPIPS) -> Term:
    def perceptual(output: Output, batch: Batch, step: int) -> Tensor:
        distance: Tensor = lpips(output.reconstruction, output.target)
        return distance * output.target[0].numel()

    return perceptual
