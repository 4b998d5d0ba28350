"""AutoencoderKL of diffusers <-> our network of kind `kl`: configuration both ways, and weights.

The parameters carry diffusers' names, so that weights pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_vae.bottlenecks.gaussian import GaussianConfig
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.networks.likelihood import PlainPicture
from ldm_vae.networks.network import Network
from ldm_vae.recipe import Config, validate

CLASS = "AutoencoderKL"
_FORMAT_VERSION = "0.36.0"  # the oldest version of diffusers that reads what is written here
LOWEST_LOGVAR = -30.0  # what diffusers clamps the log-variance to


class _Published(Config):
    """What config.json says of the network, with AutoencoderKL's own defaults, which old folders leave out.

    Source: diffusers 0.42, models/autoencoders/autoencoder_kl.py.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


def holds(model: Network) -> bool:
    """Whether AutoencoderKL can hold the network: its decoder outputs the picture itself.

    The bottleneck is Gaussian, or deterministic (`to_state`).
    """
    known = model.config.bottleneck.kind in ("gaussian", "deterministic")
    return known and isinstance(model.likelihood, PlainPicture)


def from_config(config: Mapping[str, Any], source: str) -> AutoencoderConfig:
    """AutoencoderKL's configuration -> ours.

    Keys that AutoencoderKL does not know are ignored, as it ignores them. Raises UserError for what our network
    cannot do.

    source: where the configuration stands, for errors.
    """
    names = _Published.model_fields
    known = validate(_Published, {key: value for key, value in config.items() if key in names}, source)
    if known.act_fn not in ("silu", "swish"):  # two names of one function
        raise UserError(f"{source} has act_fn {known.act_fn!r}", "only silu can be loaded")
    levels = len(known.block_out_channels)
    down = _attention_levels(known.down_block_types, "DownEncoderBlock2D", levels, source)
    up = _attention_levels(known.up_block_types[::-1], "UpDecoderBlock2D", levels, source)
    if down != up:
        raise UserError(
            f"{source} has attention at the levels {list(down)} of the encoder and {list(up)} of the decoder",
            "only equal levels can be loaded",
        )
    values = {
        "in_channels": known.in_channels,
        "out_channels": known.out_channels,
        "latent_channels": known.latent_channels,
        "block_out_channels": known.block_out_channels,
        "layers_per_block": known.layers_per_block,
        "attention_levels": down,
        "mid_attention": known.mid_block_add_attention,
        "norm_groups": known.norm_num_groups,
        "quant_conv": known.use_quant_conv,
        "post_quant_conv": known.use_post_quant_conv,
    }
    return validate(AutoencoderConfig, values, source)


def to_config(config: AutoencoderConfig, scale: LatentScale, *, sample_size: int, force_upcast: bool) -> dict[str, Any]:
    """Ours -> the content of config.json.

    sample_size: pixels, the training resolution or more; `enable_tiling()` cuts tiles of this size.
    force_upcast: whether pipelines in float16 must decode in float32.
    """
    attention = ["Attn" if level in config.attention_levels else "" for level in range(len(config.block_out_channels))]
    return {
        "_class_name": CLASS,
        "_diffusers_version": _FORMAT_VERSION,
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in attention],
        "force_upcast": force_upcast,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": sample_size,
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(attention)],
        "use_post_quant_conv": config.post_quant_conv,
        "use_quant_conv": config.quant_conv,
        **scale.to_config(),
    }


def to_state(model: Autoencoder) -> dict[str, Tensor]:
    """The state dict that AutoencoderKL loads.

    AutoencoderKL needs a log-variance, and a deterministic encoder has none. So its last layer gets further channels,
    with weights of 0 and the lowest log-variance as bias: a deviation of e^-15.
    """
    state = model.exported_state()
    if model.bottleneck.width == 2:
        return state
    channels = model.config.latent_channels
    for name in ("encoder.conv_out", "quant_conv"):
        if (weight := state.get(f"{name}.weight")) is None:
            continue
        inputs = 2 * channels if name == "quant_conv" else weight.shape[1]
        wide = weight.new_zeros(2 * channels, inputs, *weight.shape[2:])
        wide[:channels, : weight.shape[1]] = weight
        state[f"{name}.weight"] = wide
        state[f"{name}.bias"] = torch.cat([state[f"{name}.bias"], weight.new_full((channels,), LOWEST_LOGVAR)])
    return state


def differences(config: AutoencoderConfig) -> list[str]:
    """Where AutoencoderKL behaves differently from the model, one sentence each."""
    bottleneck = config.bottleneck
    if isinstance(bottleneck, GaussianConfig) and bottleneck != GaussianConfig():
        low, high = bottleneck.logvar_range
        return [f"Trained with the log-variance clamped to [{low:g}, {high:g}]; diffusers clamps to [-30, 20]."]
    return []


def _attention_levels(types: Sequence[str], plain: str, levels: int, source: str) -> tuple[int, ...]:
    if unknown := sorted(set(types) - {plain, f"Attn{plain}"}):
        raise UserError(f"{source} has blocks of the type {unknown[0]}", f"only {plain} and Attn{plain} can be loaded")
    if len(types) != levels:
        raise UserError(f"{source} names {len(types)} block types for {levels} levels", "mend its config.json")
    return tuple(level for level, name in enumerate(types) if name != plain)
