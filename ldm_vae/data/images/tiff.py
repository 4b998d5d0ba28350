"""Reads TIFF and 16-bit PNG, which Pillow would cut down to 8 bits or cannot open. Needs the extra `raster`.

The rules are those of `data/images/decode.py`, for 8 or 16 bits or floats, and for any number of channels. The picture
is the first page of a TIFF; or all its pages, as channels, if each has one channel and there are as many pages as
channels are wanted. Palettes, CMYK and the like are left to Pillow, at 8 bits. Floats are data in [-1, 1]: ICC profiles
do not apply to them.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from ldm_vae.data.images.pixels import BrokenImage, PixelArray, check_size, decoding, from_pillow, orient
from ldm_vae.errors import UserError

try:
    import imagecodecs
    import tifffile
except ImportError as error:
    raise UserError(f"tiff and 16-bit png need the package {error.name}", 'pip install "ldm-vae[raster]"') from error

WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, YCBCR = 0, 1, 2, 6  # TIFF tag 262, photometric interpretation
PREMULTIPLIED, STRAIGHT = 1, 2  # TIFF tag 338, what an extra sample is
ORIENTATION, PROFILE = 274, 34675  # TIFF tags


def read_png(data: bytes, channels: int, profile: bytes | None) -> PixelArray:
    """16-bit PNG -> (H, W, channels) uint16, or float in [-1, 1] where channels had to be mixed."""
    with decoding():
        pixels = imagecodecs.png_decode(data)
    pixels = _three_axes(pixels)
    if channels == 4 and pixels.shape[2] in (1, 3):
        pixels = _with_full_opacity(pixels)
    return _match(pixels, channels, alpha=pixels.shape[2] in (2, 4), profile=profile)


def read_tiff(data: bytes, channels: int) -> PixelArray:
    """TIFF -> (H, W, channels), upright: uint8, uint16 or float."""
    with decoding():
        opened = tifffile.TiffFile(io.BytesIO(data))
    with opened as file:
        with decoding():
            page = file.pages.first
            sides = int(page.imagelength), int(page.imagewidth)
            samples, depth = int(page.samplesperpixel), int(page.imagedepth)
            kind, compressed_ycbcr = int(page.photometric), page.photometric == YCBCR and page.compression in (6, 7)
            extra = tuple(page.extrasamples)
            orientation, profile = page.tags.valueof(ORIENTATION), page.tags.valueof(PROFILE)
        orientation = orientation if isinstance(orientation, int) else 1
        profile = profile if isinstance(profile, bytes) else None
        check_size(*sides, samples)
        if depth != 1:
            raise BrokenImage(f"a volume of depth {depth}")
        if kind not in (WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB) and not compressed_ycbcr:
            with decoding():
                picture = Image.open(io.BytesIO(data), formats=("TIFF",))
            with picture as image:
                return orient(from_pillow(image, channels), orientation)
        pixels = _pixels(page)
        if pixels.shape[2] == 1 and channels > 1 and _pages(file, channels) == channels:
            with decoding():
                others = [file.pages[i] for i in range(1, channels)]
            pixels = np.concatenate([pixels, *(_pixels(other, like=pixels) for other in others)], axis=2)
        if kind == WHITE_IS_ZERO and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        if PREMULTIPLIED in extra:
            raise BrokenImage("premultiplied alpha: save it straight (unassociated)")
        colours = 3 if kind in (TIFF_RGB, YCBCR) else 1
        if channels == 4 and colours == 3 and pixels.shape[2] == 3:  # a grey one may be a band of a raster
            pixels, extra = _with_full_opacity(pixels), (STRAIGHT,)
        alpha = extra == (STRAIGHT,) and pixels.shape[2] == colours + 1
        pixels = _match(pixels, channels, alpha=alpha, profile=profile)
        return orient(pixels, orientation)


def _pages(file: tifffile.TiffFile, limit: int) -> int:
    """Counts the pages, up to limit + 1 at most, because the chain of a hostile file may run in a circle."""
    for index in range(limit + 1):
        with decoding():
            try:
                file.pages[index]
            except IndexError:
                return index
    return limit + 1


def _pixels(page: Any, like: PixelArray | None = None) -> PixelArray:
    """One page -> (H, W, samples)."""
    with decoding():
        shape = (int(page.imagelength), int(page.imagewidth), 1)
        planar = page.planarconfig == 2
    if like is not None and shape != like.shape:
        raise BrokenImage(f"pages of different sizes: {shape[:2]} beside {like.shape[:2]}")
    with decoding():
        pixels = np.asarray(page.asarray(maxworkers=1))
    return _three_axes(pixels.transpose(1, 2, 0) if planar and pixels.ndim == 3 else pixels)


def _three_axes(pixels: PixelArray) -> PixelArray:
    """(H, W) or (H, W, n) -> (H, W, n)."""
    if pixels.ndim not in (2, 3):
        raise BrokenImage(f"pixels of shape {pixels.shape} are no picture")
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _with_full_opacity(pixels: PixelArray) -> PixelArray:
    """(H, W, n) of an opaque picture -> (H, W, n + 1), with alpha."""
    full = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
    return np.concatenate([pixels, np.full_like(pixels[:, :, :1], full)], axis=2)


def _match(pixels: PixelArray, channels: int, *, alpha: bool, profile: bytes | None) -> PixelArray:
    """Steps 2 to 4, profile, transparency and channels: (H, W, n) -> (H, W, channels). Mixing is done in floats."""
    present = pixels.shape[2]
    if present == channels and not (profile and pixels.dtype.kind == "u"):
        return pixels
    opacity = pixels[:, :, -1:] if alpha else None
    colour = pixels[:, :, :-1] if alpha else pixels
    if colour.shape[2] not in (1, 3) or channels not in (1, 3, 4) or (channels == 4 and opacity is None):
        if present == channels:
            return pixels
        raise BrokenImage(f"{present} channels where {channels} are wanted")
    if profile and pixels.dtype.kind == "u":
        colour = _array_to_srgb(colour, profile)
    if channels == 4 and opacity is not None:
        return np.concatenate([np.broadcast_to(colour, (*colour.shape[:2], 3)), opacity], axis=2)
    if colour.shape[2] == channels and opacity is None:
        return colour
    if channels == 3 and opacity is None:
        return np.broadcast_to(colour, (*colour.shape[:2], 3))
    full = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else None
    mixed = colour / full * 2.0 - 1.0 if full else colour.astype(np.float64)
    if opacity is not None:
        share = opacity / full if full else (opacity + 1.0) / 2.0
        mixed = 1.0 + (mixed - 1.0) * share  # over white, which is 1
    if channels == 1 and mixed.shape[2] == 3:
        mixed = mixed @ np.array([[0.299], [0.587], [0.114]])
    return np.broadcast_to(mixed, (*mixed.shape[:2], channels))


def _array_to_srgb(colour: PixelArray, profile: bytes) -> PixelArray:
    """(H, W, 1 or 3) -> (H, W, 3) in sRGB; unchanged if the profile does not open or does not fit the pixels."""
    grey = colour.shape[2] == 1
    # At 16 bits littlecms would replace curves and matrix by a coarse table, off by 4 steps of 8 bits in dark colours.
    flags = imagecodecs.CMS.FLAGS.NOOPTIMIZE if colour.dtype == np.uint16 else None
    pixels, space = (colour[:, :, 0], "gray") if grey else (colour, "rgb")
    target = imagecodecs.cms_profile("srgb")
    with decoding():
        try:
            converted = imagecodecs.cms_transform(
                np.ascontiguousarray(pixels), profile, target, colorspace=space, outcolorspace="rgb", flags=flags
            )
        except imagecodecs.CmsError:
            return colour
    return np.asarray(converted)
