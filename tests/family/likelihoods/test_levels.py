from __future__ import annotations

import pytest
import torch

from ldm_vae.family.likelihoods.levels import nearest_level, value_of_level
from ldm_vae.images import from_uint8


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_a_level_is_nearest_to_its_value(levels: int) -> None:
    level = torch.arange(levels)
    value = value_of_level(level, levels, torch.float32)
    assert value[0] == -1 and value[-1] == 1
    assert torch.equal(nearest_level(value, levels), level)
    near = 0.98 / (levels - 1)  # of half a level
    assert torch.equal(nearest_level(value + near, levels), level)
    assert torch.equal(nearest_level(value - near, levels), level)


def test_levels_of_8_bits_are_the_bytes_of_an_image() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(nearest_level(from_uint8(pixels), 256), pixels.long())


def test_values_outside_have_the_last_level() -> None:
    assert nearest_level(torch.tensor([-3.0, 3.0]), 256).tolist() == [0, 255]
