"""Checks the strips and tiles of a TIFF page before any is decoded: that they are whole, and what they will take.

tifffile fills up what is missing, and decodes whatever size a stream inside claims.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from ldm_vae.data.images.jpeg import check_end, frame_size
from ldm_vae.data.images.pixels import BrokenImage, check_bytes, check_size, decoding

NONE, OLD_JPEG, JPEGS = 1, 6, (6, 7, 33007, 34892)  # TIFF tag 259, compression
OPENED_BY_PILLOW = (33003, 33004, 33005, 34712, 34933, 34927, 50001)  # JPEG 2000, PNG and WebP: headers tell the size
UNBOUNDED = (22610, 34934, 48124, 50002, 52546, 65000, 65001, 65002)  # JPEG XR, Jetraw, JPEG XL, EER: they do not, here
SPARE = 2**24  # bytes that a strip or tile may take, however small the picture is
SHARE = 4  # times the picture's own bytes that a larger one may take


def check_segments(page: Any, size: int, channels: int) -> None:
    """Raises BrokenImage for strips or tiles that are missing, cut, or far larger than their picture.

    page: of tifffile.   size: bytes of the file.   channels: those of the result.
    """
    with decoding():
        height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
        planar, itemsize = page.planarconfig == 2, np.dtype(page.dtype or np.uint8).itemsize
        tiled, compression = bool(page.is_tiled), int(page.compression)
        rows = int(page.tilelength) if tiled else min(int(page.rowsperstrip or height), height)
        columns = int(page.tilewidth) if tiled else width
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
        bits = page.bitspersample
    check_size(height, width, samples, channels, itemsize=itemsize)
    if min(rows, columns) < 1:
        raise BrokenImage(f"strips or tiles of {columns}x{rows}")
    each = samples * itemsize if not planar else itemsize
    limit = max(SPARE, SHARE * height * width * samples * itemsize)
    if rows * columns * each > limit:
        raise BrokenImage(f"a strip or tile of {columns}x{rows} for {width}x{height} pixels")
    picture = height * width * samples * itemsize
    check_bytes(picture + 2 * rows * columns * each, f"{width}x{height} pixels and a strip or tile of {columns}x{rows}")
    number = math.ceil(height / rows) * math.ceil(width / columns) * (samples if planar else 1)
    if compression == NONE and len(offsets) == 1 and isinstance(bits, int):  # tifffile joins strips that touch
        number = 1
        if not tiled:  # some writers count too many bytes; subsampled colours take fewer
            counts = [min(counts[0], math.ceil(width * samples * bits / 8) * height)] if counts else counts
    if len(offsets) < number or len(counts) < number:
        raise BrokenImage(f"{min(len(offsets), len(counts))} strips or tiles of {number}")
    for offset, count in zip(offsets[:number], counts[:number], strict=True):
        if not offset or not count:
            raise BrokenImage("a strip or tile that was never written")
        if offset + count > size:
            raise BrokenImage(f"a strip or tile ends at byte {offset + count} of {size}: truncated?")
    if compression in UNBOUNDED:
        raise BrokenImage(f"TIFF compression {compression} is not read here: its pieces do not tell their size")
    if compression in JPEGS or compression in OPENED_BY_PILLOW:
        with decoding():
            file = page.parent.filehandle
            for offset, count in zip(offsets[:number], counts[:number], strict=True):
                file.seek(offset)
                _check_stream(file.read(count), compression, limit, itemsize)


def _check_stream(stream: bytes, compression: int, limit: int, itemsize: int) -> None:
    """Raises BrokenImage if a picture inside a strip or tile is cut or takes more than `limit` bytes."""
    if compression in JPEGS:
        if compression != OLD_JPEG:  # writers of the old kind leave the end marker out
            check_end(stream)
        elif stream[:2] != b"\xff\xd8":  # of the old kind, headers may stand elsewhere
            return
        height, width, channels = frame_size(stream)
    else:
        with Image.open(io.BytesIO(stream), formats=("JPEG2000", "PNG", "WEBP")) as image:
            height, width, channels = image.height, image.width, len(image.getbands())
    if height * width * channels * itemsize > limit:
        raise BrokenImage(f"a strip or tile holds a picture of {width}x{height}")
