"""Pillow's resize filters as weights: what each pixel of a resized side is made of.

The weights are those of Pillow's `Resample.c`, from which images of floats get the same values, but for the rounding of
sums to float32. As small matrices they take a third to a fifth of Pillow's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating[Any]]
BAND = 32  # resized pixels of a side that are computed at once; 16 or 48 take as long


class Filter(NamedTuple):
    """A filter of one side.

    reach: pixels to each side of its middle.
    weight: distances from the middle, in pixels -> weights that are not yet normalised. It is asked within its reach.
    """

    reach: float
    weight: Callable[[Floats], Floats]


class Band(NamedTuple):
    """Neighbouring pixels of a resized side.

    resized: which they are.
    source: the pixels that they are made of.
    weights: (resized, source), float32.
    """

    resized: slice
    source: slice
    weights: Tensor


def bands(side: int, begin: float, end: float, count: int, resize_filter: str) -> list[Band]:
    """Of the part from `begin` to `end` of a side of `side` pixels -> `count` resized ones.

    The filter is widened where they are fewer, against aliasing; beyond the side it has no weight.
    """
    reach, weight = WEIGHTS[resize_filter]
    scale = (end - begin) / count
    widened = max(scale, 1.0)
    middles = begin + (np.arange(count) + 0.5) * scale
    first = np.maximum((middles - reach * widened + 0.5).astype(np.int64), 0)
    last = np.minimum((middles + reach * widened + 0.5).astype(np.int64), side)
    pixels = first[:, None] + np.arange(int((last - first).max()))
    weights = weight((pixels - middles[:, None] + 0.5) / widened) * (pixels < last[:, None])
    weights /= weights.sum(1, keepdims=True)

    starts = first[::BAND]
    reached = int((last[[*range(BAND - 1, count - 1, BAND), count - 1]] - starts).max())
    matrix = np.zeros((count, reached + weights.shape[1]), np.float32)  # as wide as the widest band, all at once
    rows = np.arange(count)[:, None]
    matrix[rows, pixels - starts[rows // BAND]] = weights
    found = []
    for number, start in enumerate(starts.tolist()):
        resized, source = (
            slice(number * BAND, min((number + 1) * BAND, count)),
            slice(start, min(start + reached, side)),
        )
        found.append(Band(resized, source, torch.from_numpy(matrix[resized, : source.stop - start])))
    return found


def _area(distance: Floats) -> Floats:
    return ((distance > -0.5) & (distance <= 0.5)).astype(np.float64)


def _bilinear(distance: Floats) -> Floats:
    return np.maximum(1.0 - np.abs(distance), 0.0)


def _bicubic(distance: Floats) -> Floats:
    """Keys' kernel (1981, equation 4) with a = -1/2."""
    x, a = np.abs(distance), -0.5
    inner, outer = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _lanczos(distance: Floats) -> Floats:
    return np.where(np.abs(distance) < 3.0, np.sinc(distance) * np.sinc(distance / 3.0), 0.0)


WEIGHTS = {
    "area": Filter(0.5, _area),
    "bilinear": Filter(1.0, _bilinear),
    "bicubic": Filter(2.0, _bicubic),
    "lanczos": Filter(3.0, _lanczos),
}
