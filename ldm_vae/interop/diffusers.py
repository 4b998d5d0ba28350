"""The folder format of diffusers' models: config.json and diffusion_pytorch_model.safetensors.

The layouts (`interop/layouts/`) translate the configuration. Nothing here imports diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ldm_vae.atomic import atomic_folder
from ldm_vae.documents import read_json
from ldm_vae.errors import UserError
from ldm_vae.interop.native import NATIVE_WEIGHTS
from ldm_vae.interop.weights import CODECS, HALF, WEIGHTS, weight_files
from ldm_vae.precision import floats_as_float32

CONFIG, CARD = "config.json", "README.md"
HALF_WEIGHTS = weight_files(HALF)[0]
STATISTICS = "latent_statistics.json"  # in a run, beside its recipe, or in an export
PICTURE = "reconstructions.jpg"  # beside the card
EXPORTED = (CONFIG, WEIGHTS, HALF_WEIGHTS, NATIVE_WEIGHTS, CARD, STATISTICS, PICTURE)  # all that an export may hold


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder of diffusers or of our own. Raises UserError where it is missing or damaged."""
    path = folder / CONFIG
    try:
        return read_json(path, "get it again")
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}", "give the folder of an exported codec") from None


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    documents: Mapping[str, str | bytes],
    *,
    weights: str = WEIGHTS,
    codecs: Sequence[str] = (),
) -> None:
    """Writes a folder that `from_pretrained(folder)` of diffusers' class loads.

    The folder appears whole or not at all. It replaces an earlier export of that name. Raises UserError where that
    folder holds any other file, and for weights that float16 cannot hold.

    config: content of config.json.
    state: the weights. Floating point is stored as float32, integers and booleans as they are; as float16 where
    `weights` is the file of that variant.
    documents: further files, name -> content.
    weights: name of the file of weights.
    codecs: sha256 of all weights of codecs with the same encoder; in the metadata of the weights.
    """
    stored = {name: floats_as_float32(value.detach()).cpu().contiguous() for name, value in state.items()}
    if weights == HALF_WEIGHTS:
        stored = {name: _rounded(name, value) for name, value in stored.items()}
    needed = sum(value.nbytes for value in stored.values())
    with atomic_folder(folder, ours=EXPORTED, needed=needed) as stage:
        (stage / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        kept = {CODECS: " ".join(codecs)} if codecs else {}
        (stage / weights).write_bytes(save(stored, metadata={"format": "pt"} | kept))
        for name, content in documents.items():
            (stage / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _rounded(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    if bool((half.isinf() & value.isfinite()).any()):
        raise UserError(f"{name} has values beyond float16, 65504", "export it without --variant")
    return half
