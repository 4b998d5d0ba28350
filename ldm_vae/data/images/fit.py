"""Resizes, crops and flips a picture: from its size in the file to what the network sees."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from ldm_vae.choices import DEFAULT_FILTER, ResizeFilter
from ldm_vae.data.images.pixels import (
    MAX_CHANNELS,
    MAX_PIXELS,
    BrokenImage,
    PixelArray,
    check_bytes,
)
from ldm_vae.data.images.resize import ALIASED, Kept, resize_image, resized
from ldm_vae.recipe import Config


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

    jpeg_scaling: bool = False
    """Decodes a JPEG at a half, a quarter or an eighth of its size, if no side becomes shorter than after the resize,
    which follows. Large photographs take less time. Beside the exact resize, PSNR was 42.6 dB on average, and 31.6 dB
    at worst (docs/performance.md). Validation and evaluation never do it."""

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

    The arguments and errors are those of `plan_fit`.
    """
    channels, height, width = array.shape
    kept, flip = plan_fit(channels, height, width, config, generator)
    if (height, width) != (kept.height, kept.width):
        pixels, options = array.transpose(1, 2, 0), (config.resize_filter, config.resize_rounding)
        array = resize_image(pixels, 0, kept.height, kept.width, *options)
    rows, columns = kept.places()
    return mirrored(array[:, rows, columns], flip, holds_more=kept.is_part)


def plan_fit(
    channels: int, height: int, width: int, config: ImageConfig, generator: np.random.Generator | None
) -> tuple[Kept, bool]:
    """(what is kept of a picture of this size, whether it is mirrored).

    generator: gives every random choice, the flip first, then top and left. None means centre crop and no flip.
    Raises BrokenImage for an image smaller than the crop, and for one that takes more than `MAX_BYTES` meanwhile.
    """
    flip = config.flip and generator is not None and bool(generator.integers(2))
    tall, wide = height, width
    if config.resize is not None:
        tall, wide = resized(height, width, config.resize, config.resize_filter)
        if tall * wide > MAX_PIXELS:
            raise BrokenImage(f"{width}x{height} would become {wide}x{tall} by the resize")
    taken = fitting_peak(channels, height, width, config)
    check_bytes(taken, f"{width}x{height} pixels, to be resized or cropped,")
    if config.crop is None:
        return Kept(tall, wide, 0, 0, tall, wide), flip
    rows, columns = tall - config.crop, wide - config.crop
    if min(rows, columns) < 0:
        raise BrokenImage(f"{wide}x{tall} is smaller than the crop, {config.crop} pixels")
    if config.crop_mode == "random" and generator is not None:
        top, left = int(generator.integers(rows + 1)), int(generator.integers(columns + 1))
    else:
        top, left = round(rows / 2), round(columns / 2)  # as torchvision's CenterCrop
    return Kept(tall, wide, top, left, config.crop, config.crop), flip


def mirrored(array: PixelArray, flip: bool, *, holds_more: bool) -> PixelArray:
    """(C, h, w), mirrored left to right if `flip`, contiguous.

    Copied where the array is a view that holds more than itself; and where it is mirrored, because numpy calls an array
    one pixel wide contiguous with any stride, and torch takes no negative one.
    """
    if flip:
        return array[:, :, ::-1].copy()
    return array.copy() if holds_more else np.ascontiguousarray(array)


def fitting_peak(channels: int, height: int, width: int, config: ImageConfig) -> int:
    """Bytes that `fit_image` takes at its peak for a picture of (channels, height, width), with the picture itself."""
    picture = 4 * channels * height * width
    taken = picture
    if config.resize is not None:
        short, wide = resized(height, width, config.resize, config.resize_filter)
        if (short, wide) != (height, width):
            if config.resize_rounding == "8bit":
                # One channel of the picture as Pillow holds it, the same after its rows, and then one of the result.
                meanwhile = height * width + height * wide + (channels + 2) * short * wide
            else:  # as many rows as in the result, and then the result
                meanwhile = channels * short * (width + wide)
            taken = picture + 4 * meanwhile
            height, width, picture = short, wide, 4 * channels * short * wide
    cropped = min(config.crop or height, height) * min(config.crop or width, width)
    copied = cropped < height * width or config.flip
    return max(taken, picture + copied * 4 * channels * cropped)


def describe_resize(config: ImageConfig) -> str:
    """The resize in words, for the protocol of a measurement."""
    if config.resize is None:
        return "none"
    rounding = ", rounded to 8 bits after rows and after columns" if config.resize_rounding == "8bit" else ""
    antialias = "" if config.resize_filter == ALIASED else ", antialias"
    return f"short side {config.resize}, {config.resize_filter}{antialias}{rounding}"
