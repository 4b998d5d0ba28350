"""Pixels in memory: their limits, their range, colours to sRGB, the way up. What every decoder of files needs."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from ldm_vae.precision import at_least_float32

PixelArray = np.ndarray[Any, np.dtype[Any]]

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "npy", "tif", "tiff")  # the fields of a sample that hold a picture
MAX_PIXELS = 2**27  # pixels of one picture, 134 million (1.6 GB as three float32 channels); more is taken for a bomb
MAX_CHANNELS = 256  # channels of one picture; more is taken for a bomb
RANGE_TOLERANCE = 1e-3  # how far floats may pass 1: one step of float16 there


class BrokenImage(Exception):
    """A picture that cannot be used. The caller replaces, counts and reports it.   reason: one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_size(height: int, width: int, channels: int = 1) -> None:
    """Raises BrokenImage for an empty picture and for a bomb; called before any pixel is decoded."""
    if min(height, width) < 1:
        raise BrokenImage(f"no pixels: {width}x{height}")
    if height * width > MAX_PIXELS or channels > MAX_CHANNELS:
        limit = f"{MAX_PIXELS} pixels and {MAX_CHANNELS} channels"
        raise BrokenImage(f"{width}x{height} pixels of {channels} channels are over the limit of {limit}")


def from_pillow(image: Image.Image, channels: int) -> PixelArray:
    """Steps 2 to 4 for an 8-bit Pillow image -> (H, W, channels) uint8."""
    if channels not in (1, 3, 4) or (channels == 4 and not image.has_transparency_data):
        raise BrokenImage(f"{image.format} of mode {image.mode} where {channels} channels are wanted")
    picture = image.convert("RGBA") if image.has_transparency_data else image
    alpha = picture.getchannel("A") if image.has_transparency_data else None
    grey = image.mode in ("1", "L", "LA")
    colour = image.convert("L") if grey else picture if picture.mode == "CMYK" else picture.convert("RGB")
    colour = _to_srgb(colour, image.info.get("icc_profile"))
    if channels == 4 and alpha is not None:
        return np.dstack([np.asarray(colour.convert("RGB")), np.asarray(alpha)])
    if alpha is not None:
        colour = Image.composite(colour, Image.new(colour.mode, colour.size, "white"), alpha)
    pixels: PixelArray = np.asarray(colour.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    transform = _srgb_transform(profile, image.mode) if profile else None
    if transform is not None:
        return ImageCms.applyTransform(image, transform) or image
    return image.convert("RGB") if image.mode == "CMYK" else image


@lru_cache(maxsize=16)  # a data set has few profiles, and building a transform takes longer than a small picture
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the profile does not open or does not fit the mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def orient(pixels: PixelArray, orientation: int) -> PixelArray:
    """Undo the EXIF orientation 1..8 of (H, W, C); other values mean 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)  # 5: mirrored along the diagonal
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, any shape: clamp, then round half to even. The one rounding of pictures and metrics.

    NaN has no meaning as uint8: the caller has looked for it.
    """
    return ((at_least_float32(image).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
