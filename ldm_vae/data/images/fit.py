"""Resizes, crops and flips a picture: from its size in the file to what the network sees."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, PositiveInt, model_validator

from ldm_vae.choices import DEFAULT_FILTER, ResizeFilter
from ldm_vae.data.images.pixels import MAX_CHANNELS, MAX_PIXELS, BrokenImage, PixelArray, check_bytes, to_uint8
from ldm_vae.recipe import Config

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
ALIASED = "bilinear_aliased"


class ImageConfig(Config):
    """What lies between the picture in a file and what the network sees: resize, then crop, then flip."""

    channels: Annotated[int, Field(gt=0, le=MAX_CHANNELS)] = 3
    """Channels of the image."""

    resize: PositiveInt | None = None
    """Short side in pixels; smaller images are enlarged to it. null keeps the size."""

    resize_filter: ResizeFilter = DEFAULT_FILTER
    """How pixels are resampled. The filter is widened where the image shrinks, against aliasing, except that of
    bilinear_aliased, which is OpenCV's and CompVis': it aliases, and the long side is rounded to the nearest."""

    resize_rounding: Literal["none", "8bit"] = "none"
    """8bit: rows and then columns are rounded to 8 bits, as Pillow and torchvision do to 8-bit pictures."""

    crop: PositiveInt | None = None
    """Side in pixels of the square that is cut out after the resize; null keeps everything."""

    crop_mode: Literal["random", "center"] = "random"
    """Where the square lies; validation and evaluation always take the centre."""

    flip: bool = False
    """Mirrors left to right with probability 1/2; never in validation and evaluation."""

    @model_validator(mode="after")
    def _possible(self) -> ImageConfig:
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than the short side after the resize, {self.resize}")
        return self


def fit_image(array: PixelArray, config: ImageConfig, generator: np.random.Generator | None) -> PixelArray:
    """Resizes, crops and flips: (C, H, W) -> (C, h, w), float32 in [-1, 1].

    generator: gives every random choice, the flip first, then top and left. None means centre crop and no flip.
    Raises BrokenImage for an image smaller than the crop, and for one that takes more than `MAX_BYTES` meanwhile.
    """
    flip = config.flip and generator is not None and bool(generator.integers(2))
    height, width = array.shape[1:]
    if config.resize is not None:
        height, width = resized(height, width, config.resize, config.resize_filter)
        if height * width > MAX_PIXELS:
            raise BrokenImage(f"{array.shape[2]}x{array.shape[1]} would become {width}x{height} by the resize")
    check_bytes(
        fitting_peak(array.shape[0], array.shape[1], array.shape[2], config),
        f"{array.shape[2]}x{array.shape[1]} pixels, to be resized or cropped,",
    )
    if config.resize is not None:
        array = resize_image(array, height, width, config.resize_filter, config.resize_rounding)
    if config.crop is not None:
        rows, columns = array.shape[1] - config.crop, array.shape[2] - config.crop
        if min(rows, columns) < 0:
            raise BrokenImage(f"{array.shape[2]}x{array.shape[1]} is smaller than the crop, {config.crop} pixels")
        if config.crop_mode == "random" and generator is not None:
            top, left = int(generator.integers(rows + 1)), int(generator.integers(columns + 1))
        else:
            top, left = round(rows / 2), round(columns / 2)  # as torchvision's CenterCrop
        if rows or columns:  # copied, so that nothing holds the rest
            array = array[:, top : top + config.crop, left : left + config.crop].copy()
    # A copy, because numpy calls an array one pixel wide contiguous with any stride, and torch takes no negative one.
    return array[:, :, ::-1].copy() if flip else np.ascontiguousarray(array)


def fitting_peak(channels: int, height: int, width: int, config: ImageConfig) -> int:
    """Bytes that `fit_image` takes at its peak for a picture of (channels, height, width), with the picture itself."""
    picture = 4 * channels * height * width
    taken = picture
    if config.resize is not None:
        short, wide = resized(height, width, config.resize, config.resize_filter)
        if (short, wide) != (height, width):
            # One channel of the picture as Pillow holds it, the same after its rows, and then one of the result.
            taken = picture + 4 * (height * width + height * wide + (channels + 2) * short * wide)
            height, width, picture = short, wide, 4 * channels * short * wide
    cropped = min(config.crop or height, height) * min(config.crop or width, width)
    copied = cropped < height * width or config.flip
    return max(taken, picture + copied * 4 * channels * cropped)


def resized(height: int, width: int, short: int, resize_filter: str = "bicubic") -> tuple[int, int]:
    """(height, width) after a resize of the short side to `short`.

    The long one is rounded down, as in torchvision; with the aliased filter to the nearest, as in albumentations.
    """
    half = min(height, width) // 2 if resize_filter == ALIASED else 0
    if height <= width:
        return short, (short * width + half) // height
    return (short * height + half) // width, short


def describe_resize(config: ImageConfig) -> str:
    """The resize in words, for the protocol of a measurement."""
    if config.resize is None:
        return "none"
    rounding = ", rounded to 8 bits after rows and after columns" if config.resize_rounding == "8bit" else ""
    antialias = "" if config.resize_filter == ALIASED else ", antialias"
    return f"short side {config.resize}, {config.resize_filter}{antialias}{rounding}"


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
        return values if resize_rounding == "none" else _from_8_bits(_to_8_bits(values))
    stacked = np.empty((len(array), height, width), np.uint8 if resize_rounding == "8bit" else array.dtype)
    for number, plane in enumerate(array):  # one at a time, because pictures are large
        levels = _to_8_bits(plane) if resize_rounding == "8bit" else plane
        stacked[number] = np.asarray(Image.fromarray(levels).resize((width, height), FILTERS[resize_filter]))
    return _from_8_bits(stacked) if resize_rounding == "8bit" else stacked.clip(-1.0, 1.0, out=stacked)


def _to_8_bits(array: PixelArray) -> PixelArray:
    return to_uint8(torch.from_numpy(np.ascontiguousarray(array))).numpy()


def _from_8_bits(levels: PixelArray) -> PixelArray:
    return levels / np.float32(127.5) - np.float32(1.0)
