"""Embedded pictures hold the pixels that went in; maps of colours say what they claim."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ldm_vae.report.pictures import choose_gain, data_uri, difference, difference_map, diverging_map, to_picture


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_pixel_survives(channels: int) -> None:
    """Also under zero alpha, which lossless WebP may change where it is not told otherwise."""
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 31, 17), dtype=np.uint8)
    picture = to_picture(pixels)
    back = np.asarray(decoded(data_uri(picture)).convert(picture.mode)).reshape(31, 17, channels)
    assert np.array_equal(back.transpose(2, 0, 1), pixels)


def test_other_numbers_of_channels_show_the_first() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 8, 9), dtype=np.uint8)
    assert np.array_equal(np.asarray(to_picture(pixels)), pixels[0])


def test_difference_is_of_the_channel_where_it_is_largest_and_does_not_wrap() -> None:
    original, other = np.zeros((3, 1, 2), np.uint8), np.zeros((3, 1, 2), np.uint8)
    original[1, 0, 0], other[2, 0, 1] = 255, 200
    assert difference(original, other).tolist() == [[255, 200]]
    assert difference(other, original).tolist() == [[255, 200]]


@pytest.mark.parametrize(("value", "gain"), [(0, 32), (1, 32), (7, 32), (8, 16), (60, 4), (127, 2), (128, 1), (255, 1)])
def test_gain_brings_differences_below_full_scale(value: int, gain: int) -> None:
    assert choose_gain([np.full((4, 4), value, np.uint8)]) == gain
    assert value * gain <= 255
    assert choose_gain([]) == 1


def test_maps_are_dark_at_zero_and_white_at_the_middle() -> None:
    dark, bright = np.asarray(difference_map(np.array([[0, 255]], np.uint8), 1))[0].sum(axis=1)
    assert dark < 20 < 500 < bright
    low, middle, high = np.asarray(diverging_map(np.array([[-2.0, 0.0, 2.0]]), 2.0))[0].astype(int)
    assert low[2] > low[0] and high[0] > high[2]  # blue, red
    assert middle.min() > 240
    assert np.asarray(diverging_map(np.zeros((1, 1)), 0.0)).min() > 240  # a channel that is zero everywhere
