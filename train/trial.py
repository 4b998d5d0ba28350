"""Whether a device can train: the operations that every recipe needs, on a few numbers, before any work.

What a device lacks is seldom documented, and differs by version. Two faults were found in releases of torch: operations
that are missing, and fused Adam that ignores the flag of a step that was not finite, which ruins the weights in silence
(Apple's, pytorch/pytorch#186360).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.errors import UserError

PROVEN = ("cpu", "cuda", "gpu")  # types of devices on which our tests train; gpu is the stand-in (tools/stand_in)
REMEDY = "train on another device (ACCELERATE_USE_CPU=true), or with a newer PyTorch"


def check_trains(device: torch.device) -> None:
    """Raises UserError for a device that cannot train. Draws no random numbers."""
    weight = nn.Parameter(_numbers(device, 4, 4, 3, 3))
    try:
        _gradient(weight)
        untouched = _update(weight, skip=True)
        moved = not _update(weight, skip=False)
    except (RuntimeError, TypeError) as error:  # a missing operation is NotImplementedError, which is a RuntimeError
        raise UserError(f"{device} cannot train: {str(error).splitlines()[0]}", REMEDY) from error
    if not (untouched and moved):
        what = "skip a step whose gradients are not finite" if not untouched else "change weights"
        raise UserError(f"{device} cannot train: its fused Adam does not {what}", REMEDY)


def _numbers(device: torch.device, *shape: int) -> Tensor:
    """Of different sizes, so that no gradient of theirs is 0."""
    return torch.arange(math.prod(shape), device=device, dtype=torch.float32).reshape(shape).sin()


def _gradient(weight: Tensor) -> None:
    """Passes some numbers forward and back through what the networks are made of."""
    x = _numbers(weight.device, 1, 4, 8, 8)
    x = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2)
    x = F.silu(F.group_norm(x, 2))
    tokens = x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
    x = x + F.scaled_dot_product_attention(tokens, tokens, tokens).mean(dim=2)[:, 0, :, None, None]
    x = F.leaky_relu(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.autograd.backward(F.max_pool2d(x, 2).square().mean())


def _update(weight: Tensor, *, skip: bool) -> bool:
    """Takes a step of fused Adam, which is to be skipped or not. Returns whether the weight is what it was."""
    optimizer = torch.optim.Adam([weight], fused=True)
    before = weight.detach().clone()
    optimizer.found_inf = torch.full((), float(skip), device=weight.device)  # type: ignore[attr-defined]  # of scalers
    optimizer.step()
    return bool((weight == before).all())
