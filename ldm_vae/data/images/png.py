"""Checks PNG files before a decoder sees them: chunks, checksums, and how much the pixels of 16 bits inflate to.

Decoders skip the checksums of pixels: an interrupted download whose rest is zeros comes out as a whole picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ldm_vae.data.images.pixels import BrokenImage, decoding

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples of a pixel
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
SURPLUS = 2**16  # bytes of pixels behind the last row, which decoders ignore; more count as an attack
PIECE = 2**16  # bytes that are inflated at a time, to 1032 times as many at most


def check_png(data: bytes) -> None:
    """Raises BrokenImage if a chunk is cut or its checksum fails, that of a comment, too: the file is damaged."""
    if data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\x0d":
        raise BrokenImage("a PNG that does not begin with its header")
    for kind, start, length in _chunks(data):
        found = zlib.crc32(memoryview(data)[start - 4 : start + length])
        if found != int.from_bytes(data[start + length : start + length + 4], "big"):
            raise BrokenImage(f"PNG: the checksum of a chunk fails: {kind!r}")


def samples(data: bytes) -> int:
    """Samples of a pixel as a decoder returns them: a colour key becomes an alpha channel."""
    colour_type = data[25]
    if colour_type not in SAMPLES:
        raise BrokenImage(f"PNG: unknown colour type {colour_type}")
    keyed = colour_type in (0, 2) and any(kind == b"tRNS" for kind, _, _ in _chunks(data))
    return SAMPLES[colour_type] + keyed


def check_inflated(data: bytes) -> None:
    """Raises BrokenImage if the pixels of a 16-bit PNG inflate to fewer or far more bytes than its header says.

    Pillow stops at the last row, libpng inflates all there is. Takes no memory beyond a piece.
    """
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    pixel = 2 * SAMPLES[data[25]]
    passes = ADAM7 if data[28] else ((0, 0, 1, 1),)
    sides = [(-((top - height) // down), -((left - width) // right)) for top, left, down, right in passes]
    expected = sum(rows * (1 + columns * pixel) for rows, columns in sides if rows > 0 and columns > 0)
    inflated, inflater = 0, zlib.decompressobj()
    for kind, start, length in _chunks(data):
        if kind != b"IDAT":
            continue
        for place in range(start, start + length, PIECE):
            piece = data[place : min(place + PIECE, start + length)]
            while piece and not inflater.eof:
                with decoding():
                    inflated += len(inflater.decompress(piece, PIECE))
                if inflated > expected + SURPLUS:
                    raise BrokenImage(f"PNG: pixels inflate to more than the {expected} bytes of {width}x{height}")
                piece = inflater.unconsumed_tail
    if not inflater.eof:
        with decoding():
            inflated += len(inflater.decompress(b"", PIECE))  # what the last piece had no room for
    if inflated < expected or not inflater.eof:
        raise BrokenImage(f"PNG: pixels inflate to {inflated} of {expected} bytes, or lack their end")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, length) of each chunk up to IEND. Raises BrokenImage if one is cut."""
    place = len(SIGNATURE)
    while True:
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if place + 12 + length > len(data):
            raise BrokenImage("PNG: the file ends within a chunk, or before the last one")
        yield kind, place + 8, length
        if kind == b"IEND":
            return
        place += 12 + length
