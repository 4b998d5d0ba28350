"""Resizes pictures with Pillow's filters: a whole one, or no more than the part of it that is kept."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ldm_vae.data.images.pixels import PixelArray, to_uint8, unit_levels

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
REACH = {"bicubic": 2.0, "bilinear": 1.0, "lanczos": 3.0, "area": 0.5}  # pixels to each side of a filter's middle
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
    array: PixelArray, height: int, width: int, resize_filter: str, resize_rounding: str = "none"
) -> PixelArray:
    """(C, H, W) -> (C, height, width), float32, clipped to [-1, 1], because bicubic and lanczos overshoot.

    Applies Pillow's filters, which widen when they shrink a picture, to each channel as floats. For 8-bit pictures this
    is Pillow's own result without its two roundings, and it works for any number of channels.
    """
    if array.shape[1:] == (height, width):
        return array
    if resize_filter == ALIASED:
        size = (height, width)
        values = F.interpolate(torch.from_numpy(array)[None], size, mode="bilinear", align_corners=False)[0].numpy()
        return values if resize_rounding == "none" else unit_levels(_to_8_bits(values))
    box = (0.0, 0.0, array.shape[2], array.shape[1])
    values = resize_box(array, box, height, width, resize_filter, resize_rounding)
    return unit_levels(values) if resize_rounding == "8bit" else values


def source_of(height: float, width: float, kept: Kept, resize_filter: str) -> Source:
    """What `resize_box` needs of a picture, for a filter that does not alias.

    height, width: of the picture in its pixels. Those of a JPEG that was shrunk while it was decoded may end within its
    last row and column.
    """
    rows, top, bottom = _along(height, kept.height, kept.top, kept.rows, REACH[resize_filter])
    columns, left, right = _along(width, kept.width, kept.left, kept.columns, REACH[resize_filter])
    return Source(rows, columns, (left, top, right, bottom))


def resize_box(
    array: PixelArray,
    box: tuple[float, float, float, float],
    height: int,
    width: int,
    resize_filter: str,
    resize_rounding: str,
) -> PixelArray:
    """A box of (C, h, w) -> (C, height, width): float32, clipped to [-1, 1]. With rounding to 8 bits it is uint8.

    array: float32 in [-1, 1]; uint8, too, with rounding.
    box: (left, top, right, bottom), in pixels. Pillow holds it in float32, so that a part of a picture differs from
        that of the whole resized one by some 1e-5, or a level of 8 bits where those are rounded.
    """
    rounded = resize_rounding == "8bit"
    result = np.empty((len(array), height, width), np.uint8 if rounded else array.dtype)
    for number, plane in enumerate(array):  # one at a time, because pictures are large
        levels = _to_8_bits(plane) if rounded and plane.dtype != np.uint8 else np.ascontiguousarray(plane)
        result[number] = np.asarray(Image.fromarray(levels).resize((width, height), FILTERS[resize_filter], box=box))
    return result if rounded else result.clip(-1.0, 1.0, out=result)


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
