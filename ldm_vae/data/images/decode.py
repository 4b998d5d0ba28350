"""Decodes the bytes of picture files to (C, H, W) float32 in [-1, 1], and encodes such arrays.

Decoding takes these steps, in this order:

1. Pixels. Pillow reads jpg, jpeg, png and webp, and tells them apart by content; of an animation, the first frame.
   `data/images/tiff.py` (extra `raster`) reads tif and tiff, `data/images/depth.py` 16-bit png. numpy reads npy, and
   never unpickles. A png with a wrong checksum and a jpg without its end are damaged, whatever a decoder makes of them.
2. Colours by the ICC profile to sRGB (perceptual intent). A profile that does not open, or does not fit the pixels, is
   ignored, as browsers do; so is one of 8-bit RGB that is sRGB itself, which would only round. Without one, pixels are
   sRGB, and CMYK becomes R = (255-C)(255-K)/255, and so on.
3. Transparency. Palettes are expanded. A transparent picture (alpha channel, palette entry or colour key) is laid over
   white, in sRGB values, as a browser shows it on a blank page and as img2dataset does. So nothing that was hidden
   reaches training. With `channels` 4, alpha stays, straight, as the fourth channel; of an opaque picture it is full. A
   TIFF of one channel is refused there, because it may be a band of a raster.
4. Channels. Grey becomes R = G = B; colour becomes grey by ITU-R 601-2, 0.299 R + 0.587 G + 0.114 B. A file with any
   other number of channels than the one wanted is refused.
5. The orientation (EXIF of jpg, png and webp, the tag of tiff) is applied, so that up is up.
6. Range. An integer v of n bits becomes v / ((2^n - 1) / 2) - 1, whatever part of its range the sensor used:
   v / 127.5 - 1 for 8 bits. Floats must lie in [-1, 1] already: a file with values beyond that (by more than
   `RANGE_TOLERANCE`), or with values that are not finite, is refused. A range of [0, 1] is not guessed.

npy is data, not a photograph, and steps 2 to 5 do not apply to it. It holds uint8, uint16 or floats: (H, W) for one
channel, else (C, H, W) or (H, W, C). The outer side that equals `channels` is C; if both do, it is the first.

A file that is refused raises `BrokenImage` with the reason; a far too large one before memory is taken: no picture of
more than `MAX_PIXELS`, or that takes more than `MAX_BYTES` at the peak, counted by `decoding_peak`. As RGB, 8 bits take
16 bytes a pixel at the peak and 16 bits 18, WebP takes 24. Integers become floats last, in place.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm_vae.data.images.jpeg import check_end
from ldm_vae.data.images.pixels import (
    EXTENSIONS,
    PILLOW,
    PILLOW_WEBP,
    RANGE_TOLERANCE,
    BrokenImage,
    PixelArray,
    check_size,
    decoding,
    from_pillow,
    full_scale,
    orient,
    to_uint8,
    unit_planes,
)
from ldm_vae.data.images.png import SIGNATURE, check_png
from ldm_vae.errors import UserError
from ldm_vae.machine import allocation_failed


def decode_image(data: bytes, extension: str, channels: int) -> PixelArray:
    """File bytes -> (C, H, W) float32 in [-1, 1], by the rules above.

    extension: without dot, any case.
    Raises BrokenImage with the reason, and UserError if a package is missing.
    """
    with open_picture(data, extension, channels) as picture:
        pixels, full = picture.read(slice(0, picture.height), slice(0, picture.width))
    del picture  # and what its decoder holds, before floats take memory
    return unit_planes(pixels, full)


def encode_image(array: PixelArray, extension: str) -> bytes:
    """(C, H, W) float in [-1, 1] -> file bytes: png and webp lossless, jpg at quality 95, each of 8 bits; npy float32.

    Raises UserError if the format cannot hold that number of channels.
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


class Picture:
    """A picture file whose header was read and found to be right.

    height, width: upright, as the file tells them.
    lowest: the lowest value of an npy of floats, unless all are 0 or less; None for another file.
    """

    def __init__(self, height: int, width: int, lowest: float | None = None) -> None:
        self.height, self.width, self.lowest = height, width, lowest

    def shrink(self, height: int, width: int) -> tuple[float, float]:
        """Lets a JPEG be decoded at a half, a quarter or an eighth, if it stays at least as large as this.

        Returns the height and width of the picture in the pixels that `read` will give, which may end within the last
        row and column. Call it at most once, before `read`.
        """
        return self.height, self.width

    def read(self, rows: slice, columns: slice) -> tuple[PixelArray, int]:
        """A part of the pixels, (h, w, channels), upright: integers and their full scale, or floats in [-1, 1] and 0.

        Raises BrokenImage.
        """
        raise NotImplementedError


class _Decoded(Picture):
    """A picture of pixels that are decoded already."""

    def __init__(self, pixels: PixelArray, full: int, extension: str) -> None:
        lowest = None
        if not full:
            pixels = _checked_floats(pixels)
            lowest = float(pixels.min()) if extension == "npy" and pixels.max() > 0 else None
        super().__init__(pixels.shape[0], pixels.shape[1], lowest)
        self._pixels, self._full = pixels, full

    def read(self, rows: slice, columns: slice) -> tuple[PixelArray, int]:
        return self._pixels[rows, columns], self._full


class _OfPillow(Picture):
    """A picture that Pillow decodes when it is read."""

    def __init__(self, image: Image.Image, channels: int) -> None:
        if image.format == "PNG":  # it may tell its orientation after its pixels
            with decoding():
                image.load()
        self._image, self._channels, self._orientation = image, channels, _orientation(image)
        self._turned = self._orientation in (5, 6, 7, 8)
        super().__init__(*(image.size if self._turned else image.size[::-1]))

    def shrink(self, height: int, width: int) -> tuple[float, float]:
        with decoding():
            drafted = self._image.draft(None, (height, width) if self._turned else (width, height))
        if drafted is None:
            return super().shrink(height, width)
        _, (_, _, across, down) = drafted
        return (across, down) if self._turned else (down, across)

    def read(self, rows: slice, columns: slice) -> tuple[PixelArray, int]:
        if self._orientation in (2, 3, 4, 5, 6, 7, 8):
            return full_scale(orient(from_pillow(self._image, self._channels), self._orientation)[rows, columns])
        box = (columns.start, rows.start, columns.stop, rows.stop)
        return full_scale(from_pillow(self._image, self._channels, box))


@contextmanager
def open_picture(data: bytes, extension: str, channels: int) -> Iterator[Picture]:
    """The picture in the bytes of a file, by the rules above.

    extension: without dot, any case.
    Raises BrokenImage with the reason, and UserError if a package is missing.
    """
    extension = extension.lower()
    if extension not in EXTENSIONS:
        raise BrokenImage(f"{extension!r} is no picture format known here: {', '.join(EXTENSIONS)}")
    if extension == "npy":
        yield _Decoded(*full_scale(_read_npy(data, channels)), extension)
        return
    if extension in ("tif", "tiff"):
        from ldm_vae.data.images.tiff import read_tiff  # the extra `raster`, which most data does not need

        yield _Decoded(*read_tiff(data, channels), extension)
        return
    if data.startswith(SIGNATURE):
        check_png(data)
    with decoding():
        opened = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    with opened as image:
        least = PILLOW_WEBP if image.format == "WEBP" else PILLOW
        check_size(image.height, image.width, len(image.getbands()), channels, least=least)
        if image.format == "JPEG":
            check_end(data)
        if image.format == "PNG" and data[24] == 16:  # bit depth in the IHDR chunk; Pillow would drop the lower byte
            from ldm_vae.data.images.depth import read_deep_png

            pixels, full = read_deep_png(data, channels, image.info.get("icc_profile"))
            yield _Decoded(orient(pixels, _orientation(image)), full, extension)
        else:
            yield _OfPillow(image, channels)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF block is missing or malformed, which spoils no pixel."""
    try:
        with decoding():
            return int(image.getexif().get(0x0112, 1))
    except BrokenImage:
        return 1


def read_npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) of an array file, which is then at its first value. Raises BrokenImage."""
    try:
        with decoding():
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
    except MemoryError as error:  # Python's parser raises it for brackets that are nested too deeply
        if allocation_failed():
            raise
        raise BrokenImage("a header of an array that cannot be parsed") from error
    if dtype.hasobject:
        raise BrokenImage("an array of Python objects is never unpickled")
    return shape, dtype


def read_npy(data: bytes) -> PixelArray:
    """The array in an array file, whose header is compared with its length before memory is taken.

    Raises BrokenImage.
    """
    file = io.BytesIO(data)
    shape, dtype = read_npy_header(file)
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data) - file.tell():
        raise BrokenImage(f"{len(data) - file.tell()} bytes of data for shape {shape} of {dtype}: truncated?")
    with decoding():
        array: PixelArray = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def _read_npy(data: bytes, channels: int) -> PixelArray:
    """An array file -> (H, W, channels), by the rule for layouts."""
    shape, dtype = read_npy_header(io.BytesIO(data))
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or channels not in (shape[0], shape[2]):
        raise BrokenImage(f"array of shape {shape} is neither ({channels}, H, W) nor (H, W, {channels})")
    first = shape[0] == channels
    check_size(*(shape[1:] if first else shape[:2]), channels, channels, itemsize=dtype.itemsize, least=0)
    array = read_npy(data).reshape(shape)
    return array.transpose(1, 2, 0) if first else array


def _checked_floats(pixels: PixelArray) -> PixelArray:
    """(H, W, C) of floats -> the same in [-1, 1], float32. Raises BrokenImage for floats out of range."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1.0 - RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE):  # NaN is refused, too
        raise BrokenImage(f"floats from {low:g} to {high:g}: they must be finite and in [-1, 1]")
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return np.clip(planes, -1.0, 1.0, out=planes if planes.flags.writeable else None).transpose(1, 2, 0)
