"""Reads TIFF, which Pillow would cut down to 8 bits or cannot open. Needs the extra `raster`.

The rules are those of `data/images/decode.py`, for 1 to 16 bits or floats, and for any number of channels. The picture
is the first page of a TIFF; or all its pages, as channels, if each has one channel, there are as many pages as channels
are wanted, and that is no number that a picture has (1, 3 or 4): three grey pages are a document. YCbCr without JPEG,
and Lab, are left to Pillow, at 8 bits. Floats are data in [-1, 1]: ICC profiles do not apply to them.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from ldm_vae.data.images.depth import Layout, mix, three_axes
from ldm_vae.data.images.pixels import BrokenImage, PixelArray, check_size, decoding, from_pillow, full_scale, orient
from ldm_vae.data.images.quiet import quiet_libtiff
from ldm_vae.data.images.segments import JPEGS, NONE, check_segments
from ldm_vae.extras import extra

with decoding(), extra("raster", "tiff and 16-bit png"):
    import tifffile

WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8  # TIFF tag 262
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, TIFF_RGB: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3, CIELAB: 3}
PREMULTIPLIED, STRAIGHT = 1, 2  # TIFF tag 338, what an extra sample is
ORIENTATION, PROFILE, SUBSAMPLING, INKS, CMYK = 274, 34675, 530, 332, 1  # TIFF tags, and what the last says of inks
PICTURES = (1, 3, 4)  # channels of a picture: grey, RGB, RGB with alpha


def read_tiff(data: bytes, channels: int) -> tuple[PixelArray, int]:
    """TIFF -> (H, W, channels), upright: integers and their full scale, or floats and 0."""
    with decoding():
        opened = tifffile.TiffFile(io.BytesIO(data))
    with opened as file:
        with decoding():
            page = file.pages.first
            sides = int(page.imagelength), int(page.imagewidth)
            count, depth = int(page.samplesperpixel), int(page.imagedepth)
            kind, inks = int(page.photometric), page.tags.valueof(INKS, CMYK)
            converted = page.compression in JPEGS and page.planarconfig == 1  # tifffile turns these into RGB
            orientation, profile = page.tags.valueof(ORIENTATION), page.tags.valueof(PROFILE)
        orientation = orientation if isinstance(orientation, int) else 1
        profile = profile if isinstance(profile, bytes) else None
        check_size(*sides, count, channels)
        if depth != 1:
            raise BrokenImage(f"a volume of depth {depth}")
        if kind not in COLOURS or (kind == SEPARATED and inks != CMYK):
            raise BrokenImage(
                f"TIFF of photometric interpretation {kind}: grey, RGB, palette, CMYK, YCbCr, Lab are known"
            )
        if kind == CIELAB or (kind == YCBCR and not converted):
            return _by_pillow(data, page, channels)
        layout = _layout(page, kind)
        stacked = layout.samples == 1 and channels not in PICTURES and _pages(file, channels) == channels
        if not stacked:
            expanded = Layout(3, 3, layout.full) if kind == PALETTE and layout.mixes else layout
            expanded.check(channels)
        pixels = _pixels(page, len(data), channels)
        if stacked:
            with decoding():
                others = [file.pages[i] for i in range(1, channels)]
            pixels = np.concatenate(
                [pixels, *(_pixels(other, len(data), channels, pixels) for other in others)], axis=2
            )
        if kind == WHITE_IS_ZERO:
            pixels = _inverted(pixels, layout, stacked)
        if kind == PALETTE:
            pixels, layout = _looked_up(pixels, page)
        pixels, full = mix(pixels, layout, channels, profile)
        return orient(pixels, orientation), full


def tiff_size(data: bytes) -> tuple[int, int, int, int]:
    """(height, width, channels, bytes of a value) of the first page, by its header. Raises BrokenImage."""
    with decoding(), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        itemsize = np.dtype(page.dtype or np.uint8).itemsize
        return int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel), itemsize


def _by_pillow(data: bytes, page: Any, channels: int) -> tuple[PixelArray, int]:
    """What tifffile leaves in other colours. Pillow turns it upright itself."""
    quiet_libtiff()
    check_segments(page, len(data), channels)
    with decoding():
        shared = page.photometric == YCBCR and tuple(page.tags.valueof(SUBSAMPLING, (2, 2))) != (1, 1)
        plain = page.compression == NONE
    if shared and plain:  # Pillow would take the bytes for three a pixel
        raise BrokenImage("TIFF: pixels that share colours, without compression")
    with decoding():
        opened = Image.open(io.BytesIO(data), formats=("TIFF",))
    with opened as image:
        return full_scale(from_pillow(image, channels))


def _layout(page: Any, kind: int) -> Layout:
    """What the header of a page says of its samples. Raises BrokenImage for types that are no pixels."""
    with decoding():
        count, extra, bits = int(page.samplesperpixel), tuple(page.extrasamples), page.bitspersample
        dtype = np.dtype(page.dtype) if page.dtype is not None else None
    if dtype is None or dtype.kind not in "buf" or not isinstance(bits, int) or (dtype.kind == "u" and bits > 16):
        raise BrokenImage(f"TIFF of type {dtype}, bits {bits}: 1 to 16 bits and floats in [-1, 1] are known")
    colours = COLOURS[kind]
    alpha = count == colours + 1 and extra in ((STRAIGHT,), (PREMULTIPLIED,))
    if PREMULTIPLIED in extra and not alpha:
        raise BrokenImage(f"premultiplied alpha among {count} channels")
    full = 0 if dtype.kind == "f" else 2**bits - 1
    return Layout(count, colours, full, alpha, premultiplied=PREMULTIPLIED in extra, band=True)


def _inverted(pixels: PixelArray, layout: Layout, stacked: bool) -> PixelArray:
    """Grey of which 0 is white, as grey of which 0 is black; opacity stays."""
    if not layout.full or not (layout.mixes or stacked):
        raise BrokenImage("0 is white, in floats or among many channels: which of them is not said")
    grey = layout.full - (pixels if stacked else pixels[:, :, :1])
    return np.concatenate([grey, pixels[:, :, 1:]], axis=2) if layout.alpha and not stacked else grey


def _looked_up(pixels: PixelArray, page: Any) -> tuple[PixelArray, Layout]:
    """The colours of a palette's indices: 16 bits, or 8 where these say the same."""
    with decoding():
        table = page.colormap
    if pixels.shape[2] != 1 or table is None or table.ndim != 2 or len(table) != 3 or table.shape[1] <= pixels.max():
        raise BrokenImage("a palette that does not fit its indices")
    if table.max() < 256:  # written by programs that forget to scale it, as libtiff tells them, too
        table = table.astype(np.uint8)
    elif not (table % 256).any():  # v * 256, for v * 257
        table = (table // 256).astype(np.uint8)
    elif not (table % 257).any():
        table = (table // 257).astype(np.uint8)
    colours = np.ascontiguousarray(table.T)[pixels[:, :, 0]]
    return colours, Layout(3, 3, full=255 if colours.dtype == np.uint8 else 65535)


def _pages(file: tifffile.TiffFile, limit: int) -> int:
    """Counts the pages, up to limit + 1 at most, because the chain of a hostile file may run in a circle."""
    for index in range(limit + 1):
        with decoding():
            try:
                file.pages[index]
            except IndexError:
                return index
    return limit + 1


def _pixels(page: Any, size: int, channels: int, like: PixelArray | None = None) -> PixelArray:
    """One page -> (H, W, samples)."""
    with decoding():
        shape = (int(page.imagelength), int(page.imagewidth), 1)
        planar = page.planarconfig == 2
    if like is not None and shape != like.shape:
        raise BrokenImage(f"pages of different sizes: {shape[:2]} beside {like.shape[:2]}")
    check_segments(page, size, channels)
    with decoding():
        pixels = np.asarray(page.asarray(maxworkers=1))
    if pixels.dtype == np.bool_:
        pixels = pixels.view(np.uint8)
    return three_axes(pixels.transpose(1, 2, 0) if planar and pixels.ndim == 3 else pixels)
