"""What every decoder of picture files needs: limits, errors, colours to sRGB, orientation, and rounding to 8 bits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

# Image.open would load these when it meets the first picture of a kind, and take one that cannot be loaded then, as
# with too many open files, for a kind that it does not know.
from PIL import Image, ImageCms, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401
from torch import Tensor

from ldm_vae.errors import UserError, in_one_line
from ldm_vae.extras import install_command
from ldm_vae.machine import allocation_failed, fault_of_machine, forget_failed_allocations, out_of_memory
from ldm_vae.precision import at_least_float32

PixelArray = np.ndarray[Any, np.dtype[Any]]

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "npy", "tif", "tiff")  # the fields of a sample that hold a picture
MAX_PIXELS = 2**27  # pixels of one picture; more count as an attack
MAX_CHANNELS = 256  # channels of one picture; more count as an attack
MAX_BYTES = 2**31  # bytes that one picture takes at the peak of decoding (`decoding_peak`); more count as an attack
PILLOW = 16  # bytes a pixel that Pillow's pictures take at least: progressive CMYK has 8 of coefficients, 4 of pixels
PILLOW_WEBP = 24  # the same for WebP, of which Pillow holds three canvases of 4 bytes beside its own picture
BLOCK = 2**18  # pixels whose channels are mixed at a time, in float64
RANGE_TOLERANCE = 1e-3  # how far floats may lie outside of [-1, 1]: one step of float16 at 1
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # of 8 bits


class BrokenImage(Exception):
    """A picture that cannot be used. The caller replaces, counts and reports it.

    reason: what is wrong with it, in one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextmanager
def decoding() -> Iterator[None]:
    """Turns whatever a decoder raises on damaged or hostile bytes into BrokenImage.

    Put nothing but calls of Pillow, numpy, tifffile and imagecodecs into such a block: an error in our own code must
    not look like a broken picture. Too little memory, or too many open files, say nothing about the picture: the one is
    raised as MemoryError, whatever the decoder makes of it, the other as UserError.
    """
    forget_failed_allocations()
    try:
        yield
    except (BrokenImage, UserError, MemoryError):
        raise
    except Exception as error:  # struct.error, zlib.error, KeyError, ...: decoders raise anything
        if allocation_failed() or out_of_memory(error) or "out of memory" in str(error):
            raise MemoryError(in_one_line(error)) from error
        if (fault := fault_of_machine(error)) is not None:
            raise fault from error
        if _not_loaded(error):
            remedy = f"see whether memory and open files suffice (ulimit -a); else {install_command('raster')}"
            raise UserError(f"a decoder cannot be loaded ({in_one_line(error)})", remedy) from error
        raise BrokenImage(in_one_line(error)) from error


def _not_loaded(error: BaseException | None) -> bool:
    """Whether an error is of an import, or was raised because of one. imagecodecs loads its decoders when called."""
    while error is not None and not isinstance(error, ImportError):
        error = error.__cause__ or error.__context__
    return error is not None


def check_size(height: int, width: int, present: int, channels: int, *, itemsize: int = 1, least: int = PILLOW) -> None:
    """Raises BrokenImage for an empty or far too large picture. Call it before any pixel is decoded.

    The arguments are those of `decoding_peak`.
    """
    if min(height, width) < 1:
        raise BrokenImage(f"no pixels: {width}x{height}")
    if height * width > MAX_PIXELS or max(present, channels) > MAX_CHANNELS:
        limit = f"{MAX_PIXELS} pixels and {MAX_CHANNELS} channels"
        raise BrokenImage(f"{width}x{height} pixels of {present} channels are over the limit of {limit}")
    check_bytes(
        decoding_peak(height, width, present, channels, itemsize=itemsize, least=least),
        f"{width}x{height} pixels of {present} channels",
    )


def check_bytes(taken: int, what: str) -> None:
    """Raises BrokenImage if a picture takes more bytes at its peak than a picture may."""
    if taken > MAX_BYTES:
        raise BrokenImage(f"{what} take {taken} bytes: over the limit of {MAX_BYTES}")


def decoding_peak(
    height: int, width: int, present: int, channels: int, *, itemsize: int = 1, least: int = PILLOW
) -> int:
    """Bytes that a picture takes at the peak of decoding, beside its file: the float32 result and what it is made of.

    present: channels of the file.   channels: those of the result.   itemsize: bytes of a value as decoded.
    least: bytes a pixel that the decoder takes, however few the channels are.
    """
    made_of = max(present * itemsize, least - 12)  # Pillow holds 4 bytes a pixel, 12 of WebP, while the result is made
    return height * width * max(least, 4 * channels + made_of)


def full_scale(pixels: PixelArray) -> tuple[PixelArray, int]:
    """The pixels, and the greatest value of their type: 255, 65535, or 0 for floats. Other types are refused."""
    kind, bytes_each = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == "f":
        return pixels, 0
    if kind != "u" or bytes_each > 2:
        raise BrokenImage(f"pixels of type {pixels.dtype}: uint8, uint16 and floats in [-1, 1] are known")
    return pixels, 255 if bytes_each == 1 else 65535


def from_pillow(image: Image.Image, channels: int, box: tuple[int, int, int, int] | None = None) -> PixelArray:
    """Steps 2 to 4 of `decode.py` for an 8-bit Pillow image, which is decoded here -> (H, W, channels) uint8.

    Copies no more than it must, because pictures are large.

    box: the part that is wanted (left, top, right, bottom); None takes all. Every step is one of single pixels.
    """
    with decoding():
        transparent = image.has_transparency_data
    if image.mode not in MODES:
        raise BrokenImage(f"{image.format} of mode {image.mode}: {', '.join(MODES)} are known")
    if channels not in (1, 3, 4):
        raise BrokenImage(f"{image.format} of mode {image.mode} where {channels} channels are wanted")
    grey = image.mode in ("1", "L", "LA", "La")
    with decoding():
        image.load()
        profile = image.info.get("icc_profile")
        image = image if box in (None, (0, 0, *image.size)) else image.crop(box)
        straight = image.convert("LA") if image.mode == "La" else image  # Pillow knows no way from La to RGBA
        picture = _as_mode(straight, "RGBA") if transparent else straight
        alpha = picture.getchannel("A") if transparent else None
        colour = _as_mode(straight, "L") if grey else picture if picture.mode == "CMYK" else _as_mode(picture, "RGB")
    del straight, picture
    colour = _pillow_to_srgb(colour, profile)
    if channels == 4:
        opacity = np.full(image.size[::-1], 255, np.uint8) if alpha is None else np.asarray(alpha)
        return np.dstack([np.asarray(_as_mode(colour, "RGB")), opacity])
    if alpha is not None:
        white = Image.new(colour.mode, colour.size, "white")
        white.paste(colour, None, alpha)
        colour = white
    pixels: PixelArray = np.asarray(_as_mode(colour, "L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode; not a copy where it has that mode already."""
    return image if image.mode == mode else image.convert(mode)


def _pillow_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    transform = _srgb_transform(profile, image.mode) if profile else None
    with decoding():
        if transform is not None:
            return ImageCms.applyTransform(image, transform) or image
        return image.convert("RGB") if image.mode == "CMYK" else image


@lru_cache(maxsize=16)  # a data set has few profiles, and building a transform takes longer than a small picture
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None if the profile is sRGB itself, does not open or does not fit the mode."""
    try:
        with decoding():
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
            return None if mode == "RGB" and _only_rounds(transform) else transform
    except BrokenImage as error:
        if isinstance(error.__cause__, ImageCms.PyCMSError | OSError):
            return None
        raise


def _only_rounds(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform of RGB changes less than 1 % of the values of a lattice, and none by more than a level."""
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(18, -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(lattice), transform)
    change = np.abs(np.asarray(converted).astype(np.int16) - lattice)
    return bool(change.max() <= 1 and (change > 0).mean() < 0.01)


def orient(pixels: PixelArray, orientation: int) -> PixelArray:
    """Turns (H, W, C) upright by its EXIF orientation, 1 to 8; other values mean 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)  # 5: mirrored along the diagonal
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    # numpy calls a side of one pixel contiguous with any stride, and torch takes no negative one.
    return pixels.copy() if 1 in pixels.shape else pixels


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, any shape: clamps, then rounds half to even. Pictures and metrics all use this rounding.

    NaN has no meaning as uint8: callers look for it before.
    """
    return ((at_least_float32(image).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def unit_values(pixels: PixelArray, full: int) -> PixelArray:
    """Step 6 of `decode.py`: what `Picture.read` gives, in part or whole -> float32 in [-1, 1], of the same shape.

    Floats may be the same array.
    """
    if not full:
        return np.ascontiguousarray(pixels)
    values = np.divide(pixels, np.float32(full / 2), dtype=np.float32, order="C")
    values -= np.float32(1.0)
    return values


def unit_planes(pixels: PixelArray, full: int) -> PixelArray:
    """The same of (h, w, C) -> (C, h, w)."""
    return unit_values(pixels.transpose(2, 0, 1), full)


def unit_levels(levels: PixelArray, out: PixelArray | None = None) -> PixelArray:
    """0..255 of 8 bits -> float32 in [-1, 1], any shape.

    out: takes the result; None makes a new array.
    """
    values = np.divide(levels, np.float32(127.5), out=out, dtype=np.float32)
    values -= np.float32(1.0)
    return values
