"""Turns arrays into pictures embedded in the page, with colour maps for arrays without colours."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_vae.extras import extra

with extra("report"):
    from matplotlib import colormaps

Pixels = NDArray[np.uint8]
SEQUENTIAL, DIVERGING = "inferno", "RdBu_r"
PICTURE_FORMAT = "lossless WebP"


def to_picture(pixels: Pixels) -> Image.Image:
    """(C, H, W), uint8 -> a picture: colour for 3 channels, colour with alpha for 4, else the first channel as grey."""
    if pixels.shape[0] in (3, 4):
        return Image.fromarray(pixels.transpose(1, 2, 0))
    return Image.fromarray(np.ascontiguousarray(pixels[0]))


def data_uri(picture: Image.Image) -> str:
    """The picture as lossless WebP in a data URI. Pixels are the same to the bit, transparent ones, too."""
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, exact=True, method=3)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def difference(original: Pixels, reconstruction: Pixels) -> Pixels:
    """(C, H, W) twice -> (H, W): the absolute difference of 8-bit values in the channel where it is largest."""
    distance: Pixels = np.abs(original.astype(np.int16) - reconstruction).max(axis=0).astype(np.uint8)
    return distance


def choose_gain(differences: list[Pixels]) -> int:
    """The largest power of two, at most 32, that keeps 95 % of the differences of all pictures below full scale."""
    if not differences:
        return 1
    high = max(1.0, float(np.percentile(np.concatenate([d.ravel() for d in differences]), 95)))
    return int(2 ** np.clip(np.floor(np.log2(255 / high)), 0, 5))


def difference_map(distance: Pixels, gain: int) -> Image.Image:
    """(H, W) -> a picture: dark where there is no difference, bright where `gain` times the difference reaches 255."""
    return _mapped(np.minimum(distance.astype(np.float64) * gain / 255, 1.0), SEQUENTIAL)


def diverging_map(values: NDArray[Any], limit: float) -> Image.Image:
    """(H, W) -> a picture: blue below zero, white at zero, red above; full colour at -limit and limit."""
    return _mapped(np.clip(values / (2 * limit or 1.0) + 0.5, 0.0, 1.0), DIVERGING)


def gradient(name: str) -> str:
    """The colour map as CSS, for a colour bar."""
    stops = (colormaps[name](np.linspace(0, 1, 9))[:, :3] * 255).round().astype(int)
    return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in stops.tolist())})"


def _mapped(unit: NDArray[Any], name: str) -> Image.Image:
    """(H, W) in [0, 1] -> a picture in the colours of the map."""
    return Image.fromarray(colormaps[name](unit, bytes=True)[..., :3])
