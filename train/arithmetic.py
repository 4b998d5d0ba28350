"""With what arithmetic a run computes: whether a GPU rounds to TF32, times its kernels, and repeats itself bit for bit.

These are settings of PyTorch for the whole process. They hold for a run or its steps, and are then what they were.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ldm_vae.arithmetic import exact_float32, float32_in_words, tf32_convolutions
from ldm_vae.errors import UserError
from train.recipe import Recipe

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")  # with which cuBLAS adds in one order, as NVIDIA says
REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")  # PyTorch's words
CUBLAS_REFUSED = "this operation is not deterministic because it uses CuBLAS"


@contextmanager
def step_arithmetic(recipe: Recipe) -> Iterator[None]:
    """A context for the steps of a run: TF32 and cuDNN's choice of kernels as the recipe says.

    Validation is outside of it: there float32 is exact, and images of many sizes would each be timed.
    """
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = recipe.cudnn_benchmark
    try:
        with tf32_convolutions() if recipe.tf32 else exact_float32():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def repeatable(asked: bool, device: str) -> Iterator[None]:
    """A context in which a run repeats itself bit for bit, on one device and with the same versions, where asked for.

    device: type of the device.
    Raises UserError where an operation has no such algorithm, and where cuBLAS was told otherwise.
    """
    if not asked:
        yield
        return
    backends: Any = torch.backends  # its flags have no types
    cudnn, onednn = backends.cudnn, backends.mkldnn
    found = cudnn.deterministic, cudnn.benchmark, onednn.deterministic
    enabled, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with _fixed_workspace() if device == "cuda" else nullcontext():
        cudnn.deterministic, cudnn.benchmark, onednn.deterministic = True, False, True
        torch.use_deterministic_algorithms(True)
        try:
            yield
        except RuntimeError as error:
            if (refusal := _refusal(error, device)) is not None:
                raise refusal from error
            raise
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warned)
            cudnn.deterministic, cudnn.benchmark, onednn.deterministic = found


def arithmetic_record(recipe: Recipe, device: str) -> dict[str, Any]:
    """What a checkpoint says of the arithmetic of its run.

    device: type of the device.
    """
    with step_arithmetic(recipe):
        float32 = float32_in_words(device)
    return {
        "device": device,
        "torch": torch.__version__,
        "float32": float32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": recipe.cudnn_benchmark,
    }


@contextmanager
def _fixed_workspace() -> Iterator[None]:
    """Tells cuBLAS, before its first use, to add in one order. Raises UserError where it was told otherwise."""
    given = os.environ.get(WORKSPACE)
    if given is not None and given not in FIXED_WORKSPACES:
        what = f"deterministic: true, and {WORKSPACE}={given}, with which cuBLAS does not repeat itself"
        raise UserError(what, f"leave the variable out, or set it to {FIXED_WORKSPACES[0]}")
    if given is None:
        os.environ[WORKSPACE] = FIXED_WORKSPACES[0]
    try:
        yield
    finally:
        if given is None:
            del os.environ[WORKSPACE]


def _refusal(error: RuntimeError, device: str) -> UserError | None:
    """What PyTorch means, where it refuses to compute something; None for other errors."""
    if CUBLAS_REFUSED in str(error):
        what = "deterministic: true, and this process had used cuBLAS before"
        return UserError(what, f"set {WORKSPACE}={FIXED_WORKSPACES[0]} before Python starts")
    if (match := REFUSED.search(str(error))) is None:
        return None
    what = (
        f"deterministic: true, and {match[1]} has no deterministic algorithm on {device} in PyTorch {torch.__version__}"
    )
    return UserError(what, "set deterministic: false, or leave out the part of the recipe that uses it")
