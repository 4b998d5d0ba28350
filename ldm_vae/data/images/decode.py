"""File bytes <-> (C, H, W) float32 in [-1, 1].

What a file's bytes become, in this order:

1. Pixels. jpg, jpeg, png and webp through Pillow, which tells them apart by content; the first frame of an animation.
   16-bit png and tif, tiff through `data/images/tiff.py` (extra `raster`). npy through numpy, never unpickling.
2. ICC profile to sRGB (perceptual intent). A profile that does not open or belongs to another kind of pixel than the
   file's is ignored, as browsers do. Without one, pixels are sRGB, and CMYK becomes R = (255-C)(255-K)/255, and so on.
3. Palettes are expanded. Transparency (alpha channel, palette entry or colour key) is laid over white, in sRGB values:
   what a browser shows on a blank page, and what img2dataset does, so that nothing hidden underneath reaches training.
   With `channels` 4 it stays, straight, as the fourth channel, and a picture without it is refused.
4. Channels. Grey becomes R = G = B; colour becomes grey by ITU-R 601-2, 0.299 R + 0.587 G + 0.114 B. Any other number
   is never converted: the file has it or is refused.
5. EXIF orientation is applied (jpg, png, webp, tiff), so that up is up.
6. Range. uint8: v / 127.5 - 1.   uint16: v / 32767.5 - 1, full range, whatever the sensor used.   Floats are taken to
   be in [-1, 1]: past that by more than `RANGE_TOLERANCE`, or not finite, the file is refused; [0, 1] is not guessed.

npy is data, not a photograph: (H, W) for one channel, else (C, H, W) or (H, W, C), told apart by which of the outer
sides is `channels` ((C, H, W) if both); uint8, uint16 or float; steps 2 to 5 do not apply.

Whatever is refused raises `BrokenImage` with the reason, before memory is taken where the header tells (`MAX_PIXELS`).
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm_vae.data.images.pixels import (
    EXTENSIONS,
    RANGE_TOLERANCE,
    BrokenImage,
    PixelArray,
    check_size,
    from_pillow,
    orient,
    to_uint8,
)
from ldm_vae.errors import UserError


def decode_image(data: bytes, extension: str, channels: int) -> PixelArray:
    """File bytes -> (C, H, W) float32 in [-1, 1], by the rules above.

    extension: without dot, any case.   Raises BrokenImage with the reason; UserError where a package is missing.
    """
    try:
        pixels = _read(data, extension.lower(), channels)
        return _unit_range(pixels)
    except (BrokenImage, UserError):
        raise
    except Exception as error:  # decoders raise anything on hostile bytes: struct.error, zlib.error, KeyError, ...
        raise BrokenImage(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def encode_image(array: PixelArray, extension: str) -> bytes:
    """(C, H, W) float in [-1, 1] -> file bytes: png and webp lossless, jpg at quality 95, each of 8 bits; npy float32.

    Raises UserError for a format that cannot hold that number of channels.
    """
    extension = extension.lower()
    file = io.BytesIO()
    if extension == "npy":
        np.save(file, array.astype(np.float32), allow_pickle=False)
        return file.getvalue()
    allowed = {"png": (1, 3, 4), "webp": (1, 3, 4), "jpg": (1, 3), "jpeg": (1, 3)}.get(extension, ())
    if array.shape[0] not in allowed:
        remedy = "write png or webp (1, 3 or 4 channels), jpg (1 or 3) or npy (any number)"
        raise UserError(f"a {extension} file of {array.shape[0]} channels", remedy)
    pixels = to_uint8(torch.from_numpy(np.ascontiguousarray(array))).numpy()
    name = "JPEG" if extension in ("jpg", "jpeg") else extension.upper()
    options: dict[str, Any] = {"quality": 95} if name == "JPEG" else {"lossless": True} if name == "WEBP" else {}
    Image.fromarray(pixels[0] if array.shape[0] == 1 else pixels.transpose(1, 2, 0)).save(file, name, **options)
    return file.getvalue()


def _read(data: bytes, extension: str, channels: int) -> PixelArray:
    """-> (H, W, channels), upright: uint8, uint16, or float in [-1, 1]."""
    if extension not in EXTENSIONS:
        raise BrokenImage(f"{extension!r} is no picture format known here: {', '.join(EXTENSIONS)}")
    if extension == "npy":
        return _read_npy(data, channels)
    if extension in ("tif", "tiff"):
        from ldm_vae.data.images.tiff import read_tiff  # the extra `raster`, which most data does not need

        return read_tiff(data, channels)
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        check_size(image.height, image.width)
        if image.format == "PNG" and data[24] == 16:  # bit depth in the IHDR chunk; Pillow would drop the lower byte
            from ldm_vae.data.images.tiff import read_png

            return orient(read_png(data, channels, image.info.get("icc_profile")), _orientation(image))
        return orient(from_pillow(image, channels), _orientation(image))


def _orientation(image: Image.Image) -> int:
    """1..8; 1 where the EXIF block is missing or malformed, which spoils no pixel."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1


def _read_npy(data: bytes, channels: int) -> PixelArray:
    """The layout rule for arrays -> (H, W, channels), after the header has been held against the bytes there are."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise BrokenImage("an array of Python objects is never unpickled")
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or channels not in (shape[0], shape[2]):
        raise BrokenImage(f"array of shape {shape} is neither ({channels}, H, W) nor (H, W, {channels})")
    first = shape[0] == channels
    check_size(*(shape[1:] if first else shape[:2]), channels=channels)
    # numpy takes the memory that the header asks for before it reads
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data) - file.tell():
        raise BrokenImage(f"{len(data) - file.tell()} bytes of data for shape {shape} of {dtype}: truncated?")
    array: PixelArray = np.load(io.BytesIO(data), allow_pickle=False).reshape(shape)
    return array.transpose(1, 2, 0) if first else array


def _unit_range(pixels: PixelArray) -> PixelArray:
    """(H, W, C) of a known type -> (C, H, W) float32 in [-1, 1]: step 6."""
    kind, bytes_each = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == "u" and bytes_each <= 2:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
        return planes / (127.5 if bytes_each == 1 else 32767.5) - 1.0
    if kind != "f":
        raise BrokenImage(f"pixels of type {pixels.dtype}: uint8, uint16 and floats in [-1, 1] are known")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1.0 - RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE):  # true of NaN
        raise BrokenImage(f"floats from {low:g} to {high:g}: they must be finite and in [-1, 1]")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32).clip(-1.0, 1.0)
