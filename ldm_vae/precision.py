"""What "in float32" means: results keep float64, stored weights do not, and integers stay integers in both."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """bfloat16 and float16 become float32; float32 and float64 are returned as they are."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def floats_as_float32(value: Tensor) -> Tensor:
    """Floating point of any precision becomes float32; integers and booleans are returned as they are."""
    return value.float() if value.is_floating_point() else value
