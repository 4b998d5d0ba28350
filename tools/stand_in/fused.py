"""Operations that CUDA runs in one kernel, and torch takes apart for a device that it does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LIBRARIES: list[Any] = []  # kept, since a library unregisters as it is freed
WHOLE = ("silu_backward",)  # operations with a formula of parts, which CUDA has a kernel for


class _Attention(torch.autograd.Function):
    """Attention that keeps no matrix of all pairs of positions."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        attended, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
        ctx.save_for_backward(query, key, value, attended, logsumexp)
        ctx.scale = scale
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return (*backward(gradient, *ctx.saved_tensors, 0.0, False, scale=ctx.scale), None)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("the stand-in device knows attention of all positions to all others alone")
    attended: Tensor = _Attention.apply(query, key, value, scale)
    return attended


def register() -> None:
    """Lets the device run them whole."""
    library_of: Any = torch.library.Library
    library = library_of("aten", "IMPL", "AutogradPrivateUse1")
    LIBRARIES.append(library)
    for name in WHOLE:
        library.impl(name, torch.library.fallthrough_kernel)
    library.impl("scaled_dot_product_attention", _attention)
    # Lists of tensors are one kernel on devices that torch knows; it asks for their class.
    clip: Any = torch.nn.utils.clip_grad
    clip._has_foreach_support = lambda tensors, device: True
