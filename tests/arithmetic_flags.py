"""PyTorch's flags for float32, as it shows them: read from inside networks, set as callers may, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Flags = dict[str, Any]
BACKENDS: Any = torch.backends
NEW = hasattr(BACKENDS, "fp32_precision")  # from PyTorch 2.9 on


def former_flags() -> Flags:
    """`allow_tf32` and its like; "mixed" where PyTorch refuses to tell, since it disagrees with `fp32_precision`."""
    flags: Flags = {}
    for name, read in {
        "matmul": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "cudnn": lambda: BACKENDS.cudnn.allow_tf32,
        "precision": torch.get_float32_matmul_precision,
    }.items():
        try:
            flags[name] = read()
        except RuntimeError:
            flags[name] = "mixed"
    return flags


def new_flags() -> Flags:
    if not NEW:
        return {}
    cuda, onednn = BACKENDS.cudnn, BACKENDS.mkldnn
    holders = {
        "all": BACKENDS,
        "cuda": cuda,
        "cuda matmul": BACKENDS.cuda.matmul,
        "cuda conv": cuda.conv,
        "cuda rnn": cuda.rnn,
        "onednn": onednn,
        "onednn matmul": onednn.matmul,
        "onednn conv": onednn.conv,
        "onednn rnn": onednn.rnn,
    }
    return {name: holder.fp32_precision for name, holder in holders.items()}


def flags() -> Flags:
    return former_flags() | new_flags()


def is_exact(found: Flags) -> bool:
    operations = [value for name, value in found.items() if " " in name]
    former = {name: found[name] for name in ("matmul", "cudnn", "precision")}
    return former == {"matmul": False, "cudnn": False, "precision": "highest"} and set(operations) <= {"ieee"}


def fast() -> None:
    torch.set_float32_matmul_precision("medium")


def convolutions_exact_alone() -> None:
    BACKENDS.cudnn.allow_tf32 = False
    BACKENDS.cuda.matmul.allow_tf32 = True


def for_all() -> None:
    BACKENDS.fp32_precision = "tf32"


def one_by_one() -> None:
    BACKENDS.cudnn.conv.fp32_precision = "ieee"  # cudnn.rnn stays tf32, so that the former flag cannot be read
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    BACKENDS.cuda.matmul.fp32_precision = "tf32"


def as_pytorch_has_it() -> None:
    """Nothing is set."""


SET_BEFORE = [as_pytorch_has_it, fast, convolutions_exact_alone, *([for_all, one_by_one] if NEW else [])]


@contextmanager
def set_by_a_caller(set_before: Callable[[], None]) -> Iterator[Flags]:
    """The flags as a caller sets them; afterwards those of a new process, as far as they can be set."""
    set_before()
    try:
        yield flags()
    finally:
        if NEW:
            BACKENDS.fp32_precision = BACKENDS.cudnn.fp32_precision = "none"
            for holder in (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn):
                holder.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        BACKENDS.cudnn.allow_tf32 = True


@contextmanager
def watched() -> Iterator[list[Flags]]:
    """The flags at each call of a convolution, of whatever network, and of `torch.einsum`."""
    found: list[Flags] = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.einsum:
                found.append(flags())
            return func(*args, **(kwargs or {}))

    def note(module: nn.Module, _: object) -> None:
        if isinstance(module, nn.Conv2d):
            found.append(flags())

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with Products():
            yield found
    finally:
        hook.remove()
