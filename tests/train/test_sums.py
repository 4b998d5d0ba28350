"""Sums in float64, and in two float32 where a device has none."""

from __future__ import annotations

import math

import pytest
import torch

from train.sums import RunningSum

CPU = torch.device("cpu")


@pytest.mark.parametrize("wide", [True, False])
def test_a_long_sum_keeps_what_float32_would_lose(wide: bool) -> None:
    """10,000 values of both signs and of sizes from 1e-4 to 1e4: float32 alone is off by more than 1e-3."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, generator=generator) * 10 ** (8 * torch.rand(10_000, generator=generator) - 4)
    running, alone = RunningSum(values[0], wide=wide), values[0]
    for value in values[1:]:
        running.add(value)
        alone = alone + value
    exact = math.fsum(values.tolist())
    assert abs(float(alone) - exact) > 1e-3
    assert running.sum.dtype == (torch.float64 if wide else torch.float32)
    # A sum of 1e6 has 53 bits in float64; two float32 have 48: 4e-9 of it at each of the largest steps.
    assert float(running.total()) == pytest.approx(exact, abs=1e-6)


def test_float64_is_what_it_was() -> None:
    values = torch.rand(100, 2)
    running, expected = RunningSum(values[0]), values[0].double()
    for value in values[1:]:
        running.add(value)
        expected = expected + value.double()
    assert torch.equal(running.total(), expected)
    assert torch.equal(RunningSum.of(expected, CPU).total(), expected)
