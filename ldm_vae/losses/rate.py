"""The price of information: the bottleneck's rate, KL(q(z|x) || p(z)), in nats per image, and how it is controlled.

Capacity and free bits depend on the mean rate over images. They stand here as one value per image all the same, linear
in that image's rate: whether a rate counts, and with which sign, is read from the mean over all ranks, which has no
gradient. The mean of these values, and its gradient, are those of the coupled term, so that two ranks equal one. Under
accumulation the mean is each micro-batch's own, as with adaptive weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.networks.network import Output
from ldm_vae.recipe import Config, Positive
from ldm_vae.schedules import Rise, ramp, rise


class RateConfig(Config):
    """The price of information: the bottleneck's rate, its divergence from the prior."""

    weight: Annotated[float, Field(ge=0)] = 1.0e-6
    """beta, the loss per nat per image, beside pixel distances summed per image (CompVis); 0 switches the rate off.
    With a capacity it is gamma."""

    warmup: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the weight rises from 0."""

    schedule: Rise = "linear"
    """Shape of the rise. constant: none. cyclical: it rises `cycles` times (Fu et al. 2019); with `warmup` equal to
    `steps` that goes on to the end."""

    cycles: Positive = 4
    """Of cyclical: cycles within `warmup`, each of which begins at 0."""

    rising: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of cyclical: share of a cycle in which the weight rises, linearly; then it stays."""

    free_nats: Annotated[float, Field(ge=0)] = 0.0
    """Free bits (Kingma et al. 2016) in nats per image: each group of the bottleneck (a channel with all its positions,
    a unit of a flat latent) costs max(its mean rate over the images, this), so that none gains by going lower."""

    capacity: Annotated[float, Field(gt=0)] | None = None
    """C in nats per image: charges abs(mean rate over the images - C), which holds the rate at C (Burgess et al. 2018)
    instead of lowering it; null charges the rate."""

    capacity_warmup: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the capacity rises linearly from 0."""

    @model_validator(mode="after")
    def _check_fields_together(self) -> RateConfig:
        controlled = self.capacity is not None or self.free_nats > 0
        if controlled and self.weight == 0:
            raise ValueError("capacity and free_nats control a rate that weight: 0 switches off; give it a weight")
        if self.capacity is not None and self.free_nats > 0:
            raise ValueError("capacity holds the rate where free_nats lets go of it: keep one of them")
        if self.capacity is None and self.capacity_warmup > 0:
            raise ValueError("capacity_warmup is for a capacity: give one, or leave it out")
        if self.schedule == "constant" and self.warmup > 0:
            raise ValueError("schedule: constant has no warmup: set warmup to 0, or take linear")
        if self.schedule not in ("constant", "linear") and self.warmup == 0:
            raise ValueError(f"schedule: {self.schedule} rises over warmup steps: give warmup")
        if self.schedule == "cyclical" and self.warmup * self.rising < self.cycles:
            raise ValueError(
                f"warmup {self.warmup} is too short for {self.cycles} cycles that rise for {self.rising:g} of their "
                "time: a rise would take less than a step"
            )
        return self


def rate(output: Output, batch: Batch, step: int) -> Tensor:
    """(B,), nats per image, summed over groups and positions."""
    return output.posterior.rate


def sampled_rate(output: Output, batch: Batch, step: int) -> Tensor:
    """(B,), nats per image: log q(z|x) - log p(z) at the z that was drawn."""
    return output.posterior.sampled_rate


def rate_weight(config: RateConfig, step: int) -> float:
    """Weight of the rate at an optimizer step."""
    return config.weight * rise(
        step, shape=config.schedule, length=config.warmup, cycles=config.cycles, rising=config.rising
    )


@dataclass(frozen=True)
class FreeBits:
    """The rate, of which the first nats of each group are free: their mean over images is sum_g max(mean rate_g, free).

    free: lambda, nats per image and group.
    reduce: averages a tensor over ranks.
    Source: Kingma et al. 2016, arXiv:1606.04934, eq. 15 and appendix C.8.
    """

    free: float
    reduce: Callable[[Tensor], Tensor]

    def __call__(self, output: Output, batch: Batch, step: int) -> Tensor:
        """(B,), nats per image."""
        rates = output.posterior.rates
        charged = self.reduce(rates.detach().mean(dim=0)) > self.free  # (groups,)
        return torch.where(charged, rates, self.free).sum(dim=1)


@dataclass(frozen=True)
class Capacity:
    """The distance of the rate from a capacity that rises: the mean over images is abs(mean rate - C).

    capacity: C, nats per image, after `warmup` steps.
    warmup: optimizer steps over which it rises from 0.
    reduce: averages a tensor over ranks.
    Source: Burgess et al. 2018, arXiv:1804.03599, section 5.
    """

    capacity: float
    warmup: int
    reduce: Callable[[Tensor], Tensor]

    def __call__(self, output: Output, batch: Batch, step: int) -> Tensor:
        """(B,), nats per image: negative for single images on the other side than the mean."""
        beyond = output.posterior.rate - self.capacity * ramp(step, 0, self.warmup)
        return self.reduce(beyond.detach().mean()).sign() * beyond


def rate_control(config: RateConfig, reduce: Callable[[Tensor], Tensor]) -> FreeBits | Capacity | None:
    """What is charged in place of the rate; None where it is the rate itself.

    reduce: averages a tensor over ranks.
    """
    if config.capacity is not None:
        return Capacity(config.capacity, config.capacity_warmup, reduce)
    return FreeBits(config.free_nats, reduce) if config.free_nats > 0 else None
