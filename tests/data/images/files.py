"""Writes TIFF and PNG files byte by byte, so that what a decoder should see is known without any library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import imagecodecs
import numpy as np

GREY_WHITE, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COMPRESSIONS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (1, bytes),
    "lzw": (5, lambda data: bytes(imagecodecs.lzw_encode(data))),
    "deflate": (8, zlib.compress),
    "packbits": (32773, lambda data: bytes(imagecodecs.packbits_encode(data))),
    "zstd": (50000, lambda data: bytes(imagecodecs.zstd_encode(data))),
}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def packed(pixels: np.ndarray, bits: int, order: Literal["<", ">"]) -> bytes:
    """(H, W, n) -> rows of `bits` bits a sample, the first in the highest bits, each row filled up to a byte."""
    if pixels.dtype.kind == "f" or bits in (8, 16):
        return pixels.astype(pixels.dtype.newbyteorder(order) if bits != 8 else "u1").tobytes()
    rows = pixels.reshape(len(pixels), -1, 1).astype(">u2").view(np.uint8)
    return np.packbits(np.unpackbits(rows, axis=2)[:, :, 16 - bits :].reshape(len(pixels), -1), axis=1).tobytes()


def write_tiff(
    pixels: np.ndarray,
    bits: int,
    kind: int,
    *,
    compression: str = "none",
    orientation: int = 1,
    profile: bytes | None = None,
    extra: Sequence[int] = (),
    colours: np.ndarray | None = None,
    subsampling: tuple[int, int] = (1, 1),
    strips: Sequence[bytes] | None = None,
) -> bytes:
    """(H, W, n) -> a little-endian TIFF of two strips, or of the `strips` given; its directory stands in front."""
    height, width, samples = pixels.shape
    code, compress = COMPRESSIONS[compression]
    rows = -(-height // 2)
    if strips is None:
        strips = [compress(packed(part, bits, "<")) for part in (pixels[:rows], pixels[rows:])]
    else:
        rows = -(-height // len(strips))
    tags: dict[int, tuple[str, Sequence[Any]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * samples),
        259: ("H", [code]),
        262: ("H", [kind]),
        273: ("I", [0] * len(strips)),
        274: ("H", [orientation]),
        277: ("H", [samples]),
        278: ("I", [rows]),
        279: ("I", [len(strip) for strip in strips]),
        339: ("H", [3 if pixels.dtype.kind == "f" else 1] * samples),
    }
    if extra:
        tags[338] = ("H", extra)
    if colours is not None:
        tags[320] = ("H", colours.T.ravel().tolist())
    if kind == YCBCR:
        tags[530] = ("H", subsampling)
    if profile is not None:
        tags[34675] = ("B", profile)
    return _with_directory(tags, strips)


def _with_directory(tags: dict[int, tuple[str, Sequence[Any]]], strips: Sequence[bytes]) -> bytes:
    start = 8 + 2 + 12 * len(tags) + 4
    sizes = {tag: struct.calcsize(f"<{len(values)}{form}") for tag, (form, values) in tags.items()}
    end = start + sum(size + size % 2 for size in sizes.values() if size > 4)
    tags[273] = ("I", [end + sum(map(len, strips[:i])) for i in range(len(strips))])
    entries, beside = b"", b""
    for tag, (form, values) in sorted(tags.items()):
        content = struct.pack(f"<{len(values)}{form}", *values)
        entries += struct.pack("<HHI", tag, {"B": 7, "H": 3, "I": 4}[form], len(values))
        if len(content) <= 4:
            entries += content.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", start + len(beside))
            beside += content + bytes(len(content) % 2)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + beside + b"".join(strips)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(
    pixels: np.ndarray,
    bits: int,
    colour_type: int,
    *,
    interlaced: bool = False,
    chunks: Sequence[bytes] = (),
    surplus: bytes = b"",
) -> bytes:
    """(H, W, n) -> a PNG without filters. chunks: before the pixels.   surplus: inflated behind them."""
    height, width = pixels.shape[:2]
    raw = b""
    for top, left, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = pixels[top::down, left::right]
        raw += b"".join(b"\0" + packed(row[None], bits, ">") for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    body = chunk(b"IDAT", zlib.compress(raw + surplus, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + body
