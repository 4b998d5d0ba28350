"""bfloat16 on `meta`, whose operations torch's autocast does not reach: casts where CUDA's autocast casts.

Only the operations matter whose results a step keeps: convolutions and matrix products compute in bfloat16, group norms
in float32 (the lists of PyTorch's `autocast_mode.h`), and all others in the type of what they get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map

CAST = {
    "conv2d": torch.bfloat16,
    "linear": torch.bfloat16,
    "scaled_dot_product_attention": torch.bfloat16,
    "group_norm": torch.float32,
}
NORMS = ("group_norm",)  # which a recipe with `norms: bfloat16` keeps from autocast


@contextmanager
def half_on_meta(norms: str) -> Iterator[None]:
    """Inside, the networks' operations on `meta` cast what they get.

    norms: the recipe's field.
    """
    with ExitStack() as stack:
        for name, dtype in CAST.items():
            if norms == "bfloat16" and name in NORMS:
                continue
            stack.enter_context(patch.object(functional, name, partial(_cast, getattr(functional, name), dtype)))
        yield


def _cast(function: Callable[..., Tensor], dtype: torch.dtype, *args: Any, **kwargs: Any) -> Tensor:
    def as_wanted(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return function(*tree_map(as_wanted, args), **tree_map(as_wanted, kwargs))
