"""Networks that take part in training and are never trained: their weights are pinned by hash, and in no checkpoint."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ldm_vae.errors import UserError
from ldm_vae.pretrained.backbones import weights_sha256
from ldm_vae.recipe import Config


class FrozenConfig(Config):
    """A part of a recipe that uses a frozen network."""

    weights_sha256: str | None = None
    """Hash of the frozen network's weights. The trainer writes it when a run starts, and refuses to go on with others;
    null in a recipe takes the weights that are there."""


FrozenT = TypeVar("FrozenT", bound=FrozenConfig)


def pin(config: FrozenT, network: nn.Module, section: str) -> FrozenT:
    """The configuration with the hash of the network's weights.

    section: of the recipe, for errors. Raises UserError where the hash there is another one.
    """
    found = weights_sha256(network.state_dict())
    if config.weights_sha256 not in (None, found):
        raise UserError(
            f"{section}: the frozen network's weights are {found[:12]}, and the recipe names {config.weights_sha256}",
            "put the weights back that the run was started with, or start a new run without weights_sha256",
        )
    return config.model_copy(update={"weights_sha256": found})
