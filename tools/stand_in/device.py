"""Turns the stand-in device on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tools.stand_in import autocast, fused, host
from tools.stand_in.record import RECORD, Record
from tools.stand_in.tensor import NAME, Mode, Settings


@contextmanager
def stand_in(*, values: bool = True, float64: bool = True) -> Iterator[Record]:
    """Runs what is inside with a device `gpu`, which accelerate and the product find as they find a GPU.

    values: whether its tensors have values; without, networks of full size cost neither time nor memory.
    float64: whether the device has this type.
    May be entered once in a process.
    """
    if torch.accelerator.is_available():
        raise RuntimeError("there is a real accelerator, or the stand-in was on before")
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME)
    Settings.contents, Settings.float64 = "cpu" if values else "meta", float64
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME
    host.install()
    autocast.register()
    fused.register()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Mode():  # type: ignore[no-untyped-call]
            yield RECORD
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
