"""Reads the markers of a JPEG stream, without decoding: its size, and whether it comes to its end.

Decoders fill up what is missing of a stream. A stream that was cut, or whose rest is zeros, has no end marker.
"""

from __future__ import annotations

from ldm_vae.data.images.pixels import BrokenImage

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame header, of any process
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
SCAN, END = 0xDA, 0xD9


def check_end(stream: bytes) -> None:
    """Raises BrokenImage if no end marker follows the pixels. Markers that can't be read are left to the decoder."""
    _, scan = _markers(stream)
    if scan is not None and stream.rfind(bytes((0xFF, END)), scan) < 0:
        raise BrokenImage("JPEG: the data end before the picture does")


def frame_size(stream: bytes) -> tuple[int, int, int]:
    """(height, width, channels) by the frame header of a stream. Raises BrokenImage if there is none."""
    size, _ = _markers(stream)
    if size is None:
        raise BrokenImage("JPEG: no frame header")
    return size


def _markers(stream: bytes) -> tuple[tuple[int, int, int] | None, int | None]:
    """The size in the last frame header before the pixels, and where the pixels begin; None for what isn't found."""
    size, place = None, 2
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            place += 1
            continue
        if marker in ALONE:
            place += 2
            continue
        length = int.from_bytes(stream[place + 2 : place + 4], "big")
        content = stream[place + 4 : place + 2 + length]
        if marker in FRAMES and len(content) >= 6:
            size = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big"), content[5]
        if marker == SCAN:
            return size, place + 2 + length
        if marker == END or length < 2:
            break
        place += 2 + length
    return size, None
