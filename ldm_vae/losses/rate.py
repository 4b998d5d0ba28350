"""The price of information: the bottleneck's rate, KL(q(z|x) || p(z)), in nats per image."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.networks.network import Output
from ldm_vae.recipe import Config
from ldm_vae.schedules import ramp


class RateConfig(Config):
    """The price of information: the bottleneck's rate, its divergence from the prior."""

    weight: Annotated[float, Field(ge=0)] = 1.0e-6
    """Loss per nat per image, beside pixel distances summed per image (CompVis); 0 switches the rate off."""

    warmup: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the weight rises from 0."""


def rate(output: Output, batch: Batch, step: int) -> Tensor:
    """(B,), nats per image, summed over groups and positions."""
    return output.posterior.rate


def sampled_rate(output: Output, batch: Batch, step: int) -> Tensor:
    """(B,), nats per image: log q(z|x) - log p(z) at the z that was drawn."""
    return output.posterior.sampled_rate


def rate_weight(config: RateConfig, step: int) -> float:
    """Weight of the rate at an optimizer step."""
    return config.weight * ramp(step, 0, config.warmup)
