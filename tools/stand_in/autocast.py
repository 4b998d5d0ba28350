"""CUDA's autocast on the stand-in device: the same lists, read from the header that torch ships."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tools.stand_in.tensor import NAME

HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
KEY = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]  # torch's stubs leave it out
LIBRARIES: list[Any] = []  # kept, since a library unregisters as it is freed


def register() -> None:
    """Makes autocast on the device choose types as it does on CUDA."""
    library_of: Any = torch.library.Library
    fall_through = library_of("_", "IMPL", KEY.name)
    fall_through.fallback(torch.library.fallthrough_kernel)
    library = library_of("aten", "IMPL", KEY.name)
    LIBRARIES.extend((fall_through, library))
    text = HEADER.read_text()
    for macro, wrapped in (
        ("AT_FORALL_LOWER_PRECISION_FP", _in(lambda: torch.get_autocast_dtype(NAME))),
        ("AT_FORALL_FP32", _in(lambda: torch.float32)),
        ("AT_FORALL_FP32_SET_OPT_DTYPE", _into_float32),
    ):
        for operation in _listed(text, macro):
            library.impl(operation, wrapped(operation))


def _listed(text: str, macro: str) -> list[Any]:
    """The operations of a list of the header."""
    body = re.search(rf"#define {macro}\(_\)((?:.*\\\n)*.*)", text)
    assert body is not None  # a header without the list would leave out a rule
    found = []
    for entry in re.findall(r"_\(([^()]*)\)", body.group(1)):
        name, *overload = (part.strip() for part in entry.split(","))
        packet = getattr(torch.ops.aten, name, None)
        operation = getattr(packet, overload[0] if overload else "default", None)
        if operation is not None:  # some are gone, and only the header still names them
            found.append(operation)
    return found


def _in(wanted: Callable[[], torch.dtype]) -> Callable[[Any], Callable[..., Any]]:
    """Wraps operations so that floating tensors of the device come as a type; float64 stays."""

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.device.type != NAME:
            return value
        return value if value.dtype in (torch.float64, wanted()) else value.to(wanted())

    def wrap(operation: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(KEY)):
                return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

        return run

    return wrap


def _into_float32(operation: Any) -> Callable[..., Any]:
    """Wraps sums and the like, which read half types and return float32."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(KEY)):
            if kwargs.get("dtype") is None and args[0].dtype in (torch.bfloat16, torch.float16):
                kwargs = {**kwargs, "dtype": torch.float32}
            return operation(*args, **kwargs)

    return run
