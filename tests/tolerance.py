"""How near two results in float32 must be: measured against float64 by the test itself, on the machine that runs it."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

FACTOR = 10

Module = TypeVar("Module", bound=nn.Module)


def double(module: Module) -> Module:
    """A copy in float64."""
    return copy.deepcopy(module).double()


def roundings(result: Tensor, count: float) -> float:
    """`count` roundings of the largest value: an absolute tolerance for sums and formulas whose error is known."""
    return count * torch.finfo(result.dtype).eps * result.abs().max().item()


def assert_as_exact(found: Tensor, expected: Tensor, exact: Tensor) -> None:
    """`found` is as near to the exact result as `expected` is, up to FACTOR.

    found, expected: one result in float32, computed in two ways.
    exact: the same, computed in float64.

    Two ways differ in the order of their sums, so each has another rounding error. How large it is depends on the
    network and on the kernels that a processor gets, so no constant holds everywhere; the error of `expected` is
    measured here instead. FACTOR = 10 because the largest of some thousand errors may be several times as large in one
    order of sums as in another. A mistake, such as another epsilon or a pixel of a neighbouring piece, is larger by
    orders of magnitude: float32's own error is below 1e-3 of the output's spread, which is asserted.
    """
    assert found.dtype == expected.dtype == torch.float32 and exact.dtype == torch.float64
    error = (expected.double() - exact).abs().max().item()
    assert error < 1e-3 * exact.std(correction=0).item(), "the reference itself is not float32 rounded"
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=FACTOR * max(error, roundings(expected, 1)))
