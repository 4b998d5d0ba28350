"""Resizes pictures with Pillow's filters: a whole one, or no more than the part of it that is kept."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ldm_vae.data.images.filters import WEIGHTS, bands
from ldm_vae.data.images.pixels import PixelArray, to_uint8, unit_levels, unit_planes, unit_values

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
ALIASED = "bilinear_aliased"


class Kept(NamedTuple):
    """The part of a resized picture that is kept, in pixels.

    height, width: of the whole picture after the resize.
    top, left: where the part begins.
    rows, columns: how large it is.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    @property
    def is_part(self) -> bool:
        """Whether something is not kept."""
        return (self.rows, self.columns) != (self.height, self.width)

    def places(self) -> tuple[slice, slice]:
        """Its rows and columns in the whole picture."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)


class Source(NamedTuple):
    """The part of a picture that a part of the resized one is made of.

    rows, columns: of the picture.
    box: (left, top, right, bottom) of what is kept, in pixels of these rows and columns.
    """

    rows: slice
    columns: slice
    box: tuple[float, float, float, float]


def resized(height: int, width: int, short: int, resize_filter: str = "bicubic") -> tuple[int, int]:
    """(height, width) after a resize of the short side to `short`.

    The long one is rounded down, as in torchvision; with the aliased filter to the nearest, as in albumentations.
    """
    half = min(height, width) // 2 if resize_filter == ALIASED else 0
    if height <= width:
        return short, (short * width + half) // height
    return (short * height + half) // width, short


def resize_image(
    pixels: PixelArray, full: int, height: int, width: int, resize_filter: str, resize_rounding: str
) -> PixelArray:
    """(H, W, C) of another size -> (C, height, width), float32, clipped to [-1, 1]: bicubic and lanczos overshoot.

    Applies Pillow's filters, which widen when they shrink a picture. For 8-bit pictures this is Pillow's own result
    without its two roundings, and it works for any number of channels.

    pixels, full: as `Picture.read` gives them.
    """
    if resize_filter == ALIASED:
        planes = torch.from_numpy(unit_planes(pixels, full))[None]
        values = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0].numpy()
        return values if resize_rounding == "none" else unit_levels(_to_8_bits(values))
    box = (0.0, 0.0, pixels.shape[1], pixels.shape[0])
    if resize_rounding == "8bit":
        return unit_levels(resize_levels(pixels, full, box, height, width, resize_filter))
    return resize_floats(pixels, full, box, height, width, resize_filter)


def source_of(height: float, width: float, kept: Kept, resize_filter: str) -> Source:
    """What a resize of a part needs of a picture, for a filter that does not alias.

    height, width: of the picture in its pixels. Those of a JPEG that was shrunk while it was decoded may end within its
    last row and column.
    """
    rows, top, bottom = _along(height, kept.height, kept.top, kept.rows, WEIGHTS[resize_filter].reach)
    columns, left, right = _along(width, kept.width, kept.left, kept.columns, WEIGHTS[resize_filter].reach)
    return Source(rows, columns, (left, top, right, bottom))


def resize_floats(
    pixels: PixelArray, full: int, box: tuple[float, float, float, float], height: int, width: int, resize_filter: str
) -> PixelArray:
    """A box of (h, w, C) -> (C, height, width), float32, clipped to [-1, 1].

    pixels, full: as `Picture.read` gives them. Few rows at a time become floats.
    box: (left, top, right, bottom), in pixels.
    """
    tall, wide, channels = pixels.shape
    left, top, right, bottom = box
    lines = torch.empty(channels, height, wide)
    for band in bands(tall, top, bottom, height, resize_filter):
        rows = torch.from_numpy(unit_values(pixels[band.source], full)).flatten(1)
        lines[:, band.resized] = (band.weights @ rows).view(-1, wide, channels).permute(2, 0, 1)
    lines = lines.flatten(0, 1)
    result = torch.empty(channels * height, width)
    for band in bands(wide, left, right, width, resize_filter):
        result[:, band.resized] = lines[:, band.source] @ band.weights.T
    return result.view(channels, height, width).clamp_(-1.0, 1.0).numpy()


def resize_levels(
    pixels: PixelArray, full: int, box: tuple[float, float, float, float], height: int, width: int, resize_filter: str
) -> PixelArray:
    """A box of (h, w, C) -> (C, height, width), uint8, by Pillow itself, which rounds after rows and after columns.

    pixels, full: as `Picture.read` gives them. What is deeper is rounded to 8 bits first.
    box: (left, top, right, bottom), in pixels. Pillow holds it in float32, so that a part of a picture differs from
        that of the whole resized one, rarely, by a level.
    """
    result = np.empty((pixels.shape[2], height, width), np.uint8)
    for number in range(pixels.shape[2]):  # one channel at a time, because pictures are large
        plane = pixels[:, :, number]
        levels = np.ascontiguousarray(plane) if plane.dtype == np.uint8 else _to_8_bits(unit_values(plane, full))
        result[number] = np.asarray(Image.fromarray(levels).resize((width, height), FILTERS[resize_filter], box=box))
    return result


def _along(side: float, whole: int, start: int, count: int, reach: float) -> tuple[slice, float, float]:
    """(pixels of a side that `count` of its `whole` resized ones, from `start` on, are made of, where these begin in
    them, and where they end)."""
    scale = side / whole
    begin, end = start * scale, (start + count) * scale if start + count < whole else side
    beyond = reach * max(scale, 1.0) + 1.0  # one more than the filter reaches, however its place is rounded
    first, last = max(0, math.floor(begin - beyond)), min(math.ceil(side), math.ceil(end + beyond))
    return slice(first, last), begin - first, end - first


def _to_8_bits(array: PixelArray) -> PixelArray:
    return to_uint8(torch.from_numpy(np.ascontiguousarray(array))).numpy()
