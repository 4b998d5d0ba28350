"""Finds the chains of a network: its encoder and decoder as steps that can be evaluated row by row."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from ldm_vae.networks.network import Network
from ldm_vae.parts import CHAINS
from ldm_vae.piecewise.steps import ChainStep


class Chains(Protocol):
    """A module of this folder."""

    def encoder_steps(self, model: Network, height: int, width: int) -> list[ChainStep]:
        """`model.encode` of images of height x width, cut along the longer side."""

    def decoder_steps(self, model: Network, height: int, width: int) -> list[ChainStep]:
        """`model.run_decoder`, the pixels' parameters, for latents of height x width, cut along the longer side."""


def has_chains(model: Network) -> bool:
    """Whether the network can be evaluated in pieces."""
    return model.config.kind in CHAINS


def chains_of(model: Network) -> Chains:
    """The chains of a network that has some."""
    return cast(Chains, import_module(CHAINS[model.config.kind]))
