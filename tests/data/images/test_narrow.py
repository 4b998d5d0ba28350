"""Pictures one pixel wide: numpy calls them contiguous in any direction, and torch takes no negative strides."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from ldm_vae.codec import from_numpy
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.fit import ImageConfig, fit_image
from ldm_vae.noise import rng

COLUMN = np.linspace(-1, 1, 3 * 5, dtype=np.float32).reshape(3, 5, 1)


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_of_floats_becomes_a_tensor(orientation: int, shape: tuple[int, int]) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.linspace(-1, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, extratags=[(274, 3, 1, orientation, True)])
    decoded = torch.from_numpy(decode_image(file.getvalue(), "tif", 1))
    sides = shape if orientation < 5 else shape[::-1]
    assert decoded.shape == (1, *sides)
    assert torch.equal(decoded.flatten().sort().values, torch.from_numpy(pixels).flatten())


def test_a_flipped_column_becomes_a_tensor() -> None:
    config = ImageConfig(channels=3, flip=True)
    flips = 0
    for seed in range(8):
        flips += bool(rng(seed, "flip").integers(2))
        found = torch.from_numpy(fit_image(COLUMN, config, rng(seed, "flip")))
        assert torch.equal(found, torch.from_numpy(COLUMN))  # mirrored, it is the same
    assert 0 < flips < 8


def test_the_codec_takes_a_flipped_column() -> None:
    pixels = np.arange(15, dtype=np.uint8).reshape(5, 1, 3)
    assert torch.equal(from_numpy(pixels[:, ::-1]), from_numpy(pixels))
