"""The objective: the weighted sum of all terms that the autoencoder minimises; the only file that knows them all.

    total = nll + weight_rate * rate + factor(step) * weight_gan * lambda * generator
    nll   = (weight_pixel * pixel + weight_perceptual * perceptual) / e^s + n s,   s the learned log-variance (or 0)

The units are CompVis': every term is summed over the n = C*H*W elements of an image (LPIPS counts once per element) and
averaged over images. lambda is the adaptive weight (`losses/adaptive.py`), or 1.
Source: Esser et al. 2021 (arXiv:2012.09841), eq. 7; CompVis/latent-diffusion, contperceptual.py.

The terms of the pixels are differentiated down to the decoder's output alone: it is detached, and called the leaf. So
one backward pass through LPIPS and one through the discriminator serve both the adaptive weight and the update, and one
backward pass through decoder and encoder takes the sum of all gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.adaptive import adaptive_weight
from ldm_vae.losses.adversary import Adversary
from ldm_vae.losses.anchor import weight_gradients
from ldm_vae.losses.likelihood import LikelihoodTermConfig, negative_log_likelihood
from ldm_vae.losses.perceptual import PerceptualConfig
from ldm_vae.losses.pixel import LOG_VARIANCE_HEAD, LogVariance, PixelConfig, pixel_distance
from ldm_vae.losses.rate import RateConfig, rate, rate_control, rate_weight, sampled_rate
from ldm_vae.losses.reduction import Bound, Mean, Reduction, reduction_of
from ldm_vae.networks.network import Anchor, Output
from ldm_vae.precision import at_least_float32
from ldm_vae.recipe import Config, Positive
from ldm_vae.schedules import Schedule


class LossConfig(Config):
    """What the autoencoder minimises beside the adversarial loss: the weighted sum of these terms."""

    pixel: PixelConfig = PixelConfig()
    """Distance between pixels."""

    perceptual: PerceptualConfig = PerceptualConfig()
    """LPIPS, the learned perceptual distance."""

    likelihood: LikelihoodTermConfig = LikelihoodTermConfig()
    """The negative log-likelihood, of networks whose decoder gives a distribution."""

    rate: RateConfig = RateConfig()
    """The price of information in the latent."""

    samples: Positive = 1
    """K: draws from the posterior for each image and step."""

    bound: Bound = "elbo"
    """What the samples of an image make. elbo: their mean. iwae: the importance-weighted bound, which rises with K
    (Burda et al. 2016); it needs loss.likelihood and loss.rate of weight 1, and nothing else."""


class Term(Protocol):
    def __call__(self, output: Output, batch: Batch, step: int) -> Tensor:
        """(rows,), summed over each image, in at least float32. A row is an image, or one of its samples."""


@dataclass(frozen=True)
class WeightedTerm:
    """A term of the objective with its weight.

    name: name of the term in the log.
    term: computes the term.
    weight: optimizer step -> weight.
    balance: the last layer (anchor) at which the gradient is scaled to the length of the reconstruction terms'; None
    for a fixed weight.
    """

    name: str
    term: Term
    weight: Schedule
    balance: Literal["encoder"] | None = None


@dataclass(frozen=True)
class Losses:
    """The losses of one micro-batch.

    values: scalars for the log by name, unweighted means over images. The reconstruction terms and the total are
    per element (mean absolute error, LPIPS distance); the rate is in nats per image.
    roots, gradients: arguments of `torch.autograd.backward` that accumulate the gradient of the total.
    """

    values: dict[str, Tensor]
    roots: list[Tensor]
    gradients: list[Tensor]


class Objective:
    """The weighted sum of terms, with its gradient at the decoder's output.

    reconstruction_terms: terms of the pixels. Adaptive weights compare other terms with their sum.
    regularizers: all other terms.
    adversaries: the adversaries, in the order of their updates.
    anchors: last layers of the network, for adaptive weights.
    reduce: averages a tensor over ranks, for the adaptive weights.
    reduction: turns one value per row into the scalar that is minimised.
    """

    def __init__(
        self,
        reconstruction_terms: Sequence[WeightedTerm],
        regularizers: Sequence[WeightedTerm],
        adversaries: Sequence[Adversary],
        anchors: Mapping[str, Anchor],
        reduce: Callable[[Tensor], Tensor],
        reduction: Reduction | None = None,
    ) -> None:
        for adversary in adversaries:
            if (adversary.felt, adversary.balance) == ("latent", "decoder"):
                raise ValueError(f"adversary {adversary.name}: what is felt in the latent does not pass the decoder")
        self.reconstruction_terms = reconstruction_terms
        self.regularizers = regularizers
        self.adversaries = adversaries
        self.anchors = anchors
        self.reduce = reduce
        self.reduction = reduction or Mean()

    @property
    def samples(self) -> int:
        """Number of draws from the posterior for each image."""
        return self.reduction.samples

    def __call__(self, output: Output, batch: Batch, critics: Mapping[str, nn.Module], step: int) -> Losses:
        """The losses of one micro-batch.

        critics: the adversaries' networks by name, their parameters frozen. Those of weight 0 are not called.
        """
        parameters = at_least_float32(output.parameters)
        leaf = parameters.detach().requires_grad_()
        seen = replace(output, parameters=leaf)
        elements = output.target[0].numel()
        rows = {term.name: term.term(seen, batch, step) for term in self.reconstruction_terms}
        rows |= {term.name: term.term(output, batch, step) for term in self.regularizers}
        total = self._total_of_rows(output, rows, step)
        values: dict[str, Tensor] = {}

        nll = self._add(self.reconstruction_terms, rows, total, step)
        values |= {term.name: rows[term.name].mean() / elements for term in self.reconstruction_terms}
        log_variance = output.heads.get(LOG_VARIANCE_HEAD)
        if log_variance is not None:
            nll = nll / log_variance.exp() + elements * log_variance
            values["log_variance"] = log_variance
            gradient, gradient_log_variance = torch.autograd.grad(nll, [leaf, log_variance])
        else:
            (gradient,) = torch.autograd.grad(nll, [leaf])
        added = nll.detach()
        balance = _Balance(self.anchors, self.reduce, output, parameters, gradient)

        for adversary in self._felt("pixels", step):
            generator = self.reduction(adversary.term(critics[adversary.name], seen), total)
            (gradient_generator,) = torch.autograd.grad(generator, [leaf])
            weight = adversary.weight(step) * balance.of_pixels(adversary.balance, gradient_generator)
            gradient = gradient + weight * gradient_generator
            added = added + weight * generator
            values |= {adversary.title("generator"): generator, adversary.title("generator_weight"): weight}

        regularization = self._add(self.regularizers, rows, total, step, balance)
        values |= {term.name: rows[term.name].mean() for term in self.regularizers}
        for adversary in self._felt("latent", step):
            generator = self.reduction(adversary.term(critics[adversary.name], output), total)
            weight = adversary.weight(step) * balance.of_latent(adversary.balance, generator)
            regularization = regularization + weight * generator
            values |= {adversary.title("generator"): generator, adversary.title("generator_weight"): weight}
        values["total"] = (added + regularization) / elements

        roots, gradients = [parameters], [gradient]
        if regularization.requires_grad:  # not the rate of a frozen encoder
            roots.append(regularization)
            gradients.append(torch.ones_like(regularization))
        if log_variance is not None:
            roots.append(log_variance)
            gradients.append(gradient_log_variance)
        return Losses({name: value.detach() for name, value in values.items()}, roots, gradients)

    def _felt(self, where: Literal["pixels", "latent"], step: int) -> list[Adversary]:
        """The adversaries whose gradient enters at `where` in this step."""
        return [adversary for adversary in self.adversaries if adversary.felt == where and adversary.weight(step) > 0]

    def _add(
        self,
        terms: Sequence[WeightedTerm],
        rows: Mapping[str, Tensor],
        total: Tensor,
        step: int,
        balance: _Balance | None = None,
    ) -> Tensor:
        """The weighted sum of the reduced terms."""
        added = torch.zeros_like(total[0])
        for weighted in terms:
            value = self.reduction(rows[weighted.name], total)
            weight: float | Tensor = weighted.weight(step)
            if weighted.balance is not None and balance is not None:
                weight = weight * balance.of_latent(weighted.balance, value)
            added = added + weight * value
        return added

    @torch.no_grad()
    def _total_of_rows(self, output: Output, rows: Mapping[str, Tensor], step: int) -> Tensor:
        """(rows,): the weighted sum of all terms, without adversaries and adaptive weights."""
        nll = sum((term.weight(step) * rows[term.name] for term in self.reconstruction_terms), torch.zeros(()))
        if (log_variance := output.heads.get(LOG_VARIANCE_HEAD)) is not None:
            nll = nll / log_variance.exp() + output.target[0].numel() * log_variance
        return sum((term.weight(step) * rows[term.name] for term in self.regularizers), nll)


@dataclass(frozen=True)
class _Balance:
    """Adaptive weights: the ratio of the reconstruction terms' gradient to another one, at the weight of a last layer.

    anchors, reduce: as in `Objective`.
    output: output of the forward pass.
    parameters: the decoder's output, with its graph.
    gradient: gradient of the reconstruction terms with respect to `parameters`.
    """

    anchors: Mapping[str, Anchor]
    reduce: Callable[[Tensor], Tensor]
    output: Output
    parameters: Tensor
    gradient: Tensor

    def of_pixels(self, anchor: str | None, gradient: Tensor) -> Tensor:
        """The weight of a loss of the pixels: a scalar () without a graph.

        gradient: gradient of that loss with respect to the decoder's output.
        """
        if anchor == "decoder":
            return self._compare(anchor, self.gradient, gradient)
        if anchor is None or self._is_frozen(anchor):
            return gradient.new_ones(())
        return self._compare(anchor, self._down_to(anchor), self._down_to(anchor, gradient))

    def of_latent(self, anchor: str | None, loss: Tensor) -> Tensor:
        """The weight of any other loss: a scalar () without a graph.

        loss: that loss, a scalar with its graph.
        """
        if anchor is None or self._is_frozen(anchor):
            return loss.detach().new_ones(())
        (gradient,) = torch.autograd.grad(loss, [self.output.above[anchor]], retain_graph=True)
        return self._compare(anchor, self._down_to(anchor), gradient)

    def _is_frozen(self, anchor: str) -> bool:
        """Whether no gradient reaches the last layer, as in the training of the decoder alone."""
        return not self.output.above[anchor].requires_grad

    def _down_to(self, anchor: str, gradient: Tensor | None = None) -> Tensor:
        """The gradient at the decoder's output -> the gradient at the output of the last layer `anchor`."""
        seed = self.gradient if gradient is None else gradient
        (reached,) = torch.autograd.grad(self.parameters, [self.output.above[anchor]], seed, retain_graph=True)
        return reached

    def _compare(self, anchor: str, gradient: Tensor, other: Tensor) -> Tensor:
        ours, theirs = weight_gradients(self.anchors[anchor], self.output.below[anchor], [gradient, other])
        return adaptive_weight(ours, theirs, reduce=self.reduce)


def build_heads(loss: LossConfig) -> dict[str, nn.Module]:
    """The modules that the terms of a recipe train beside the network; the network holds them as heads."""
    return {LOG_VARIANCE_HEAD: LogVariance()} if loss.pixel.learned_variance else {}


def build_objective(
    loss: LossConfig,
    adversaries: Sequence[Adversary],
    frozen: Mapping[str, nn.Module],
    anchors: Mapping[str, Anchor],
    reduce: Callable[[Tensor], Tensor],
) -> Objective:
    """The objective of a recipe. A term whose weight is 0 is left out: it costs nothing and is absent from the log.

    frozen: the frozen networks of the terms, by the name of their section; "perceptual" is an LPIPS.
    reduce: averages a tensor over ranks.
    """
    reconstruction_terms, regularizers = [], []
    if loss.pixel.weight > 0:
        reconstruction_terms.append(WeightedTerm("pixel", _pixel_term(loss.pixel), lambda step: loss.pixel.weight))
    if "perceptual" in frozen:
        term = _perceptual_term(frozen["perceptual"])
        reconstruction_terms.append(WeightedTerm("perceptual", term, lambda step: loss.perceptual.weight))
    if loss.likelihood.weight > 0:
        weight = loss.likelihood.weight
        reconstruction_terms.append(WeightedTerm("likelihood", negative_log_likelihood, lambda step: weight))
    if loss.rate.weight > 0:
        regularizers += _rate_terms(loss, reduce)
    reduction = reduction_of(loss.bound, loss.samples)
    return Objective(reconstruction_terms, regularizers, adversaries, anchors, reduce, reduction)


def _rate_terms(loss: LossConfig, reduce: Callable[[Tensor], Tensor]) -> list[WeightedTerm]:
    """The rate. Where it is controlled, it is logged without a weight, and another term is charged in its place."""

    def weight(step: int) -> float:
        return rate_weight(loss.rate, step)

    if loss.bound == "iwae":  # importance weights take the z that was drawn
        return [WeightedTerm("rate", sampled_rate, weight)]
    control = rate_control(loss.rate, reduce)
    if control is None:
        return [WeightedTerm("rate", rate, weight)]
    return [WeightedTerm("rate", rate, lambda step: 0.0), WeightedTerm("charged_rate", control, weight)]


def _pixel_term(config: PixelConfig) -> Term:
    def pixel(output: Output, batch: Batch, step: int) -> Tensor:
        distance = pixel_distance(output.reconstruction, output.target, config.kind, config.epsilon)
        return distance.flatten(1).sum(dim=1)

    return pixel


def _perceptual_term(lpips: nn.Module) -> Term:
    def perceptual(output: Output, batch: Batch, step: int) -> Tensor:
        distance: Tensor = lpips(output.reconstruction, output.target)
        return distance * output.target[0].numel()

    return perceptual
