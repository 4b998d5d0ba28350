"""The folder format of diffusers.AutoencoderKL: config.json and diffusion_pytorch_model.safetensors.

Our parameters carry its names, so weights pass through unchanged; only configurations are translated.
Nothing here imports diffusers.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ldm_vae.atomic import atomic_folder
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.networks.kl import AutoencoderConfig
from ldm_vae.recipe import validate

CONFIG, WEIGHTS, CARD = "config.json", "diffusion_pytorch_model.safetensors", "README.md"
# In order of preference; many published folders hold several.
WEIGHT_FILES = (WEIGHTS, "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin")
_FORMAT_VERSION = "0.36.0"  # of diffusers; the oldest that reads what is written here

# AutoencoderKL's own defaults, which old folders leave out (diffusers 0.42, models/autoencoders/autoencoder_kl.py).
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# Names of attention before diffusers 0.15, by which older folders still go.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


def from_diffusers_config(config: Mapping[str, Any], source: str) -> AutoencoderConfig:
    """AutoencoderKL's configuration -> ours; `source` names it in errors.

    Keys that AutoencoderKL does not know are ignored, as it ignores them. Raises UserError for what our network
    has no counterpart of.
    """
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise UserError(f"{source} is a {kind}", "give an AutoencoderKL; no other class of diffusers can be loaded")
    known = {**_DEFAULTS, **{key: value for key, value in config.items() if key in _DEFAULTS}}
    if known["act_fn"] not in ("silu", "swish"):  # two names of one function
        raise UserError(f"{source} has act_fn {known['act_fn']!r}", "only silu can be loaded")
    levels = len(known["block_out_channels"])
    down = _attention_levels(known["down_block_types"], "DownEncoderBlock2D", levels, source)
    up = _attention_levels(list(reversed(known["up_block_types"])), "UpDecoderBlock2D", levels, source)
    if down != up:
        raise UserError(
            f"{source} has attention at the levels {list(down)} of the encoder and {list(up)} of the decoder",
            "only equal levels can be loaded",
        )
    values = {
        "in_channels": known["in_channels"],
        "out_channels": known["out_channels"],
        "latent_channels": known["latent_channels"],
        "block_out_channels": known["block_out_channels"],
        "layers_per_block": known["layers_per_block"],
        "attention_levels": down,
        "mid_attention": known["mid_block_add_attention"],
        "norm_groups": known["norm_num_groups"],
        "quant_conv": known["use_quant_conv"],
        "post_quant_conv": known["use_post_quant_conv"],
    }
    return validate(AutoencoderConfig, values, source)


def to_diffusers_config(
    config: AutoencoderConfig, scale: LatentScale, *, sample_size: int, force_upcast: bool
) -> dict[str, Any]:
    """Ours -> the content of config.json.

    sample_size: px, the training resolution or more; `enable_tiling()` cuts tiles of this size.
    force_upcast: whether pipelines in float16 must decode in float32.
    """
    attention = ["Attn" if level in config.attention_levels else "" for level in range(len(config.block_out_channels))]
    return {
        "_class_name": "AutoencoderKL",
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


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a diffusers folder. Raises UserError where it is missing or damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}", "give the folder of an AutoencoderKL") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged", f"get it again ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged", "get it again (it holds no mapping)")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a diffusers folder under today's names. A .bin is read as tensors only, never run."""
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no weights", f"it needs a {' or a '.join(WEIGHT_FILES)}")
    try:
        binary = path.suffix == ".bin"
        state = torch.load(path, map_location="cpu", weights_only=True) if binary else load_file(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read", f"it is damaged or holds more than tensors ({reason})") from None
    return modern_names(state)


def modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose attention may go by the names of before diffusers 0.15."""
    return {_modern_name(name): value for name, value in state.items()}


def write_folder(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], documents: Mapping[str, str]
) -> None:
    """Writes what AutoencoderKL.from_pretrained(folder) loads.

    config: of `to_diffusers_config`.   state: stored as float32.   documents: further files, name -> text.
    The folder appears whole or not at all; an earlier export of that name is replaced, anything else is refused.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG).is_file())):
        raise UserError(f"{folder} exists and is no earlier export", "give the name of a new folder")
    stored = {name: value.detach().float().cpu().contiguous() for name, value in state.items()}
    with atomic_folder(folder, needed=sum(value.nbytes for value in stored.values())) as stage:
        (stage / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (stage / WEIGHTS).write_bytes(save(stored, metadata={"format": "pt"}))
        for name, text in documents.items():
            (stage / name).write_text(text, encoding="utf-8")


def _attention_levels(types: list[str], plain: str, levels: int, source: str) -> tuple[int, ...]:
    if unknown := sorted(set(types) - {plain, f"Attn{plain}"}):
        raise UserError(f"{source} has blocks of the type {unknown[0]}", f"only {plain} and Attn{plain} can be loaded")
    if len(types) != levels:
        raise UserError(f"{source} names {len(types)} block types for {levels} levels", "mend its config.json")
    return tuple(level for level, name in enumerate(types) if name != plain)


def _modern_name(name: str) -> str:
    old = _OLD_NAME.fullmatch(name)
    return name if old is None else f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}"
