"""Finds the layout of a network: the class of diffusers that can hold it, and how the two are translated."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.networks.network import Network, NetworkConfig
from ldm_vae.parts import LAYOUTS


class Layout(Protocol):
    """A module of this folder.

    CLASS: the name of diffusers' class.
    """

    CLASS: str

    def holds(self, model: Network) -> bool:
        """Whether diffusers' class can compute what the network computes."""

    def from_config(self, config: Mapping[str, Any], source: str) -> NetworkConfig:
        """The content of diffusers' config.json -> ours; `source` names the file in errors."""

    def to_config(
        self, config: NetworkConfig, scale: LatentScale, *, sample_size: int, force_upcast: bool
    ) -> dict[str, Any]:
        """Ours -> the content of diffusers' config.json."""

    def to_state(self, model: Network) -> dict[str, Tensor]:
        """The state dict that diffusers' class loads."""

    def differences(self, config: NetworkConfig) -> list[str]:
        """Where diffusers' class behaves differently from the model, one sentence each."""


def layout_of(model: Network) -> Layout | None:
    """The layout that can hold a network; None where diffusers has no class for it."""
    for name, (kind, _) in LAYOUTS.items():
        if kind == model.config.kind and (layout := _named(name)).holds(model):
            return layout
    return None


def layout_named(name: str, source: str) -> Layout:
    """The layout of a class of diffusers; `source` names where it was found. Raises UserError for an unknown class."""
    if name not in LAYOUTS:
        known = " or ".join(sorted(LAYOUTS))
        raise UserError(f"{source} is a {name}", f"give an {known}; no other class of diffusers can be loaded")
    return _named(name)


def loader_of(model: Network) -> tuple[str, str]:
    """The package that loads an export of the network, and the function in it that does."""
    layout = layout_of(model)
    return ("ldm_vae", "LatentCodec.load") if layout is None else ("diffusers", f"{layout.CLASS}.from_pretrained")


def describe_parts(model: Network) -> str:
    """The parts that decide whether diffusers has a class for a network, for errors."""
    likelihood = type(model.likelihood).__name__
    return f"a network of kind {model.config.kind} with a {model.config.bottleneck.kind} bottleneck and a {likelihood}"


def exchanged_state(model: Network) -> dict[str, Tensor]:
    """The tensors that an export holds: in diffusers' layout where there is one, else the network's own."""
    layout = layout_of(model)
    return model.exported_state() if layout is None else layout.to_state(model)


def _named(name: str) -> Layout:
    return cast(Layout, import_module(LAYOUTS[name][1]))
