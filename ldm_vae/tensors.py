"""Reads files of tensors. Faults of the machine are OSErrors that name the file, never damage."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldm_vae.system import reading


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or those that torch saved to a .bin; no code in it is run.

    Raises OSError where the file cannot be read, and what safetensors or torch raise where it is damaged.
    """
    with reading(path):
        if path.suffix == ".bin":
            state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The words beside the tensors of a .safetensors file. Raises like `read_tensors`."""
    with reading(path), safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
