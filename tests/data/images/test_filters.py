"""The weights of a resized side, against Pillow's own: rows of the identity, resized by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.data.images.filters import BAND, bands
from ldm_vae.data.images.resize import FILTERS

pytestmark = pytest.mark.numerical


def matrix(side: int, begin: float, end: float, count: int, name: str) -> np.ndarray:
    """(count, side): all bands in one."""
    found = np.zeros((count, side), np.float32)
    for band in bands(side, begin, end, count, name):
        found[band.resized, band.source] = band.weights
    return found


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    ("side", "begin", "end", "count"),
    [
        (100, 0, 100, 37),  # shrunk, over several bands and a last, smaller one
        (37, 0, 37, 100),  # enlarged
        (640, 0, 640, 1),
        (1, 0, 1, 70),
        (90, 12.5, 61.25, 40),  # a part, with what its ends reach
        (50, 0.125, 50, 50),
    ],
)
def test_weights_are_pillows(name: str, side: int, begin: float, end: float, count: int) -> None:
    identity = Image.fromarray(np.eye(side, dtype=np.float32))
    box = (begin, 0.0, end, float(side))  # of ends that float32 holds, since Pillow rounds them to it
    expected = np.asarray(identity.resize((count, side), FILTERS[name], box=box)).T
    found = matrix(side, begin, end, count, name)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-24)  # of rounding a weight of at most 1 to float32


def test_a_band_takes_no_more_pixels_than_it_reaches() -> None:
    """A product of whole matrices would cost as many times more as there are bands."""
    found = bands(4000, 0, 4000, 500, "bicubic")
    assert [band.resized for band in found] == [slice(start, min(start + BAND, 500)) for start in range(0, 500, BAND)]
    most = BAND * 8 + 2 * 2 * 8 + 1  # the pixels of a band, and the reach of a filter, 8 times as wide, to both sides
    assert all(band.source.stop - band.source.start <= most for band in found)
    for band in found:
        assert band.weights.dtype == torch.float32
        assert band.weights.shape == (
            band.resized.stop - band.resized.start,
            band.source.stop - band.source.start,
        )
