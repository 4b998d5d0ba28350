"""The bits of replicas, whatever type they are of."""

from __future__ import annotations

import pytest
import torch

from train import agreement

FINGERPRINT = agreement.bit_sums


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.bfloat16, torch.float32, torch.float64, torch.int64]
)
def test_one_value_in_any_type_is_noticed(dtype: torch.dtype) -> None:
    value = torch.zeros(7, dtype=dtype)
    other = value.clone()
    other[5] = 1
    assert torch.equal(FINGERPRINT([value]), FINGERPRINT([value.clone()]))
    assert not torch.equal(FINGERPRINT([value]), FINGERPRINT([other]))
    assert not torch.equal(FINGERPRINT([other]), FINGERPRINT([other.roll(1)]))  # the place counts, too
