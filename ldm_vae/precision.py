"""Types of numbers by name, without autocast, and "in float32": results keep float64, stored weights do not.

Integers stay integers in both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """bfloat16 and float16 become float32; float32 and float64 are returned as they are."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def floats_as_float32(value: Tensor) -> Tensor:
    """Floating point of any precision becomes float32; integers and booleans are returned as they are."""
    return value.float() if value.is_floating_point() else value


def name_of_type(dtype: torch.dtype) -> str:
    """Its name without the module, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which each operation computes in the types of its tensors.

    Some devices know no autocast, such as meta, where networks are built to be counted; torch.autocast refuses them.
    """
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
