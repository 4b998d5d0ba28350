"""What "in float32" means here: half types are upcast, float64 stays."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """bfloat16 and float16 become float32; float32 and float64 are returned as they are."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
