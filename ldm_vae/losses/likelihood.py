"""How unlikely an image is under the decoder's distribution: -log p(x|z), in nats per image."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import Field
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.networks.likelihood import Density
from ldm_vae.networks.network import Output
from ldm_vae.recipe import Config


class LikelihoodTermConfig(Config):
    """-log p(x|z), of a network whose decoder gives a distribution; with a rate of weight 1 the negative ELBO."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Loss per nat per image; 0 switches it off, as for networks whose decoder gives a plain picture."""


def negative_log_likelihood(output: Output, batch: Batch, step: int) -> Tensor:
    """(B,), nats per image."""
    return -cast(Density, output.likelihood).log_prob(output.parameters, output.target)
