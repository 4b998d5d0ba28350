"""The files of weights in a folder of diffusers, or of our own -> a state dict. Nothing a file holds is ever run.

diffusion_pytorch_model.safetensors             all weights; .bin where it is old
diffusion_pytorch_model.safetensors.index.json  {"weight_map": {name: file}}: the weights lie in several files
diffusion_pytorch_model.VARIANT.safetensors     the same rounded, VARIANT fp16 or bf16; its index ends .VARIANT.json
model.safetensors                               weights of a codec that diffusers has no class for
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from ldm_vae.documents import read_json
from ldm_vae.errors import UserError, in_one_line
from ldm_vae.interop.native import NATIVE_WEIGHTS
from ldm_vae.tensors import read_metadata, read_tensors

STEM = "diffusion_pytorch_model"
WEIGHTS, INDEX = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json"
HALF = "fp16"  # the variant that is taken where there is no other file
CODECS = "ldm_vae.codecs"  # in the metadata of weights
_VARIANT = re.compile(r"\w+")
_SEVERAL = f"{STEM}*-of-*.safetensors"  # the files that an index names
_REMEDY = "get it again, it is damaged"

# Names of attention before diffusers 0.15, by which older folders still go.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


class _Index(BaseModel):
    weight_map: dict[str, str]


def weight_files(variant: str | None = None) -> tuple[str, ...]:
    """Names of files that may hold the weights, in order of preference; many published folders hold several.

    variant: what stands in diffusers' names, such as fp16; None prefers the weights that were not rounded.
    Raises UserError for a variant that cannot be part of a name.
    """
    if variant is None:
        return (WEIGHTS, INDEX, *weight_files(HALF)[:2], f"{STEM}.bin", NATIVE_WEIGHTS)
    if not isinstance(variant, str) or not _VARIANT.fullmatch(variant):
        raise UserError(f"variant {variant!r}", "give the word that stands in the name of the file, such as fp16")
    return (f"{STEM}.{variant}.safetensors", f"{INDEX.removesuffix('json')}{variant}.json", f"{STEM}.{variant}.bin")


def files_with(name: str) -> tuple[str, ...]:
    """Patterns of the files that one of `weight_files` needs: itself, and those that an index names."""
    return (name, _SEVERAL) if ".index." in name else (name,)


def read_weights(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """The state dict of a folder, under diffusers' present names. Raises UserError where there is none.

    variant: as in `weight_files`.
    """
    names = weight_files(variant)
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        what = f"{folder} holds no weights{'' if variant is None else f' of the variant {variant}'}"
        raise UserError(what, f"it needs a {' or a '.join(names)}")
    return modern_names(_read_index(path) if path.suffix == ".json" else _read_file(path))


def read_codecs(folder: Path) -> tuple[str, ...]:
    """The `codecs` that `write_folder` wrote beside the weights; empty where another program wrote them."""
    for name in (WEIGHTS, NATIVE_WEIGHTS):
        if (folder / name).is_file():
            return tuple(read_metadata(folder / name).get(CODECS, "").split())
    return ()


def modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with diffusers' present names: diffusers renamed the tensors of attention in 0.15."""
    return {_modern_name(name): value for name, value in state.items()}


def _read_index(path: Path) -> dict[str, Tensor]:
    try:
        index = _Index.model_validate(read_json(path, _REMEDY))
    except ValidationError:
        raise UserError(f"{path} is damaged (no weight_map of names)", _REMEDY) from None
    state: dict[str, Tensor] = {}
    for name in sorted(set(index.weight_map.values())):
        file = path.parent / name
        if Path(name).name != name or file.suffix != ".safetensors" or not file.is_file():
            raise UserError(f"{path} names {name!r}, which is not beside it", "get the folder again, with all files")
        there = _read_file(file)
        state |= {
            tensor: there[tensor] for tensor, home in index.weight_map.items() if home == name and tensor in there
        }
    if lost := next((tensor for tensor in index.weight_map if tensor not in state), None):
        raise UserError(f"{path} names {lost!r}, which {index.weight_map[lost]} does not hold", _REMEDY)
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        state: Any = read_tensors(path)
    except Exception as error:  # the unpickler raises anything on damaged or hostile bytes, EINVAL among it
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        what = f"it is damaged or holds more than tensors ({_reason(error)})"
        raise UserError(f"{path} cannot be read", what) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):  # as trainers save it
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(_is_tensor(name, value) for name, value in state.items()):
        raise UserError(f"{path} cannot be read", "it holds other things than dense tensors by name")
    return dict(state)


def _reason(error: BaseException) -> str:
    text = str(error)
    return in_one_line(error) if not text else text.splitlines()[0][:300]


def _is_tensor(name: object, value: object) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    return isinstance(name, str) and dense


def _modern_name(name: str) -> str:
    old = _OLD_NAME.fullmatch(name)
    return name if old is None else f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}"
