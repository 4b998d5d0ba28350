"""A folder of our own for codecs that diffusers has no class for: config.json and model.safetensors.

config.json         {"format": "ldm_vae.codec", "version": 1, "model": {"kind": ..., ...}, "sample_size": 256,
                    "force_upcast": false, "scaling_factor": ..., ...}: the scale has the four keys of diffusers
model.safetensors   the network's weights under our own names: floating point in float32, integers and booleans as is
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.networks.network import NetworkConfig

NATIVE_FORMAT, NATIVE_VERSION = "ldm_vae.codec", 1
NATIVE_WEIGHTS = "model.safetensors"


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has this format."""
    return config.get("format") == NATIVE_FORMAT


def native_config(config: NetworkConfig, scale: LatentScale, *, sample_size: int, force_upcast: bool) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "format": NATIVE_FORMAT,
        "version": NATIVE_VERSION,
        "model": config.model_dump(mode="json"),
        "sample_size": sample_size,
        "force_upcast": force_upcast,
        **scale.to_config(),
    }


def architecture_in(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The network's configuration in a config.json. Raises UserError for a newer version, or where there is none."""
    version = config.get("version")
    if not isinstance(version, int) or not 0 < version <= NATIVE_VERSION:
        raise UserError(f"{source} has format version {version!r}, newer than {NATIVE_VERSION}", "update ldm_vae")
    architecture = config.get("model")
    if not isinstance(architecture, Mapping):
        raise UserError(f"{source} is damaged (no model)", "get it again")
    return architecture
