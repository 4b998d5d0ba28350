"""The levels of a quantised image: black is level 0, white the highest, and all are equally far apart in [-1, 1]."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ldm_vae.precision import at_least_float32

Levels = Annotated[int, Field(ge=2, le=256)]  # images have 8 bits


def nearest_level(image: Tensor, levels: int) -> Tensor:
    """Values in [-1, 1] -> the numbers of their nearest levels, int64; values outside have the last one."""
    return ((at_least_float32(image) + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1).long()


def value_of_level(level: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Numbers of levels -> their values in [-1, 1]."""
    return level.to(dtype) * (2 / (levels - 1)) - 1
