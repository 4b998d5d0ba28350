"""The folder format of diffusers' models: config.json and diffusion_pytorch_model.safetensors.

The layouts (`interop/layouts/`) translate the configuration. Nothing here imports diffusers.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ldm_vae.atomic import atomic_folder
from ldm_vae.errors import UserError
from ldm_vae.interop.native import NATIVE_WEIGHTS
from ldm_vae.precision import floats_as_float32
from ldm_vae.system import reading
from ldm_vae.tensors import read_metadata, read_tensors

CONFIG, WEIGHTS, CARD = "config.json", "diffusion_pytorch_model.safetensors", "README.md"
STATISTICS = "latent_statistics.json"  # in a run, beside its recipe, or in an export
EXPORTED = (CONFIG, WEIGHTS, NATIVE_WEIGHTS, CARD, STATISTICS)  # all that an export may hold
CODECS = "ldm_vae.codecs"  # in the metadata of weights
# In order of preference; many published folders hold several.
WEIGHT_FILES = (
    WEIGHTS,
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    NATIVE_WEIGHTS,  # weights of a codec that diffusers has no class for
)

# Names of attention before diffusers 0.15, by which older folders still go.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder of diffusers or of our own. Raises UserError where it is missing or damaged."""
    path = folder / CONFIG
    try:
        with reading(path):
            config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}", "give the folder of an exported codec") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged", f"get it again ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged", "get it again (it holds no mapping)")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a folder of diffusers, under its present names, or of our own. No code in a .bin is run."""
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no weights", f"it needs a {' or a '.join(WEIGHT_FILES)}")
    try:
        state = read_tensors(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read", f"it is damaged or holds more than tensors ({reason})") from None
    return modern_names(state)


def read_codecs(folder: Path) -> tuple[str, ...]:
    """The `codecs` that `write_folder` wrote beside the weights; empty where another program wrote them."""
    for name in (WEIGHTS, NATIVE_WEIGHTS):
        if (folder / name).is_file():
            return tuple(read_metadata(folder / name).get(CODECS, "").split())
    return ()


def modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with diffusers' present names: diffusers renamed the tensors of attention in 0.15."""
    return {_modern_name(name): value for name, value in state.items()}


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    documents: Mapping[str, str],
    *,
    weights: str = WEIGHTS,
    codecs: Sequence[str] = (),
) -> None:
    """Writes a folder that `from_pretrained(folder)` of diffusers' class loads.

    The folder appears whole or not at all. It replaces an earlier export of that name. Raises UserError where that
    folder holds any other file.

    config: content of config.json.
    state: the weights. Floating point is stored as float32, integers and booleans as they are.
    documents: further files, name -> text.
    weights: name of the file of weights.
    codecs: sha256 of all weights of codecs with the same encoder; in the metadata of the weights.
    """
    stored = {name: floats_as_float32(value.detach()).cpu().contiguous() for name, value in state.items()}
    needed = sum(value.nbytes for value in stored.values())
    with atomic_folder(folder, ours=EXPORTED, needed=needed) as stage:
        (stage / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        kept = {CODECS: " ".join(codecs)} if codecs else {}
        (stage / weights).write_bytes(save(stored, metadata={"format": "pt"} | kept))
        for name, text in documents.items():
            (stage / name).write_text(text, encoding="utf-8")


def _modern_name(name: str) -> str:
    old = _OLD_NAME.fullmatch(name)
    return name if old is None else f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}"
