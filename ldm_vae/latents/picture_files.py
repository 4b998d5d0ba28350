"""Writes decoded pictures as files, while the next ones are decoded.

A thread of its own hands latents to the device, a few encode pictures (Pillow compresses without Python's lock), and
the caller's writes files, one after the other. So files and errors come in the order of the pictures.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from ldm_vae.atomic import atomic_file
from ldm_vae.data.images.decode import encode_image
from ldm_vae.data.images.in_order import IN_FLIGHT, Work, in_order
from ldm_vae.data.images.pixels import PixelArray
from ldm_vae.data.shards.disk import read_file, status
from ldm_vae.data.shards.retry import Missing
from ldm_vae.errors import UserError
from ldm_vae.latents.picture_names import PictureNames
from ldm_vae.latents.prefetch import in_thread
from ldm_vae.waiting import cores_of_process

ENCODERS = 4  # threads at most: each keeps up with a megapixel in some 0.1 s
QUEUED = IN_FLIGHT // 4  # bytes of decoded pictures that wait to be encoded; one alone may be larger
AT_PEAK = 2  # bytes that are held while a picture is encoded, over those of its floats

Decoded = tuple[int, PixelArray | None]


def write_pictures(
    pictures: Iterable[Decoded], names: PictureNames, folder: Path, extension: str
) -> Generator[tuple[int, bool], None, None]:
    """Each item, once its picture is in the folder; False where it has none.

    pictures: each item with its picture (C, H, W), or None. They are made in a thread of their own.
    extension: png or npy.
    Raises UserError where another picture has the name. Pictures before an error are written, and none after it.
    """
    threads = min(ENCODERS, cores_of_process())
    with (
        closing(in_thread(pictures, depth=threads, size=_bytes, limit=QUEUED)) as ahead,
        ThreadPoolExecutor(threads) as pool,
    ):
        for item, data in in_order(_work(ahead, extension), pool, ahead=2 * threads, size=lambda pair: len(pair[1])):
            path = names.path(item) if data else None
            if path is not None:
                _write(folder / path, data)
            yield item, path is not None


def _bytes(decoded: Decoded) -> int:
    return 0 if decoded[1] is None else decoded[1].nbytes


def _work(pictures: Iterator[Decoded], extension: str) -> Iterator[Work[tuple[int, bytes]]]:
    """What encodes each picture. An error in making one comes in its place, after those before it."""
    try:
        for decoded in pictures:
            yield Work(partial(_encoded, *decoded, extension), AT_PEAK * _bytes(decoded))
            del decoded
    except Exception as error:
        yield Work(partial(_raise, error), 0)


def _encoded(item: int, picture: PixelArray | None, extension: str) -> tuple[int, bytes]:
    return item, b"" if picture is None else encode_image(picture, extension)


def _raise(error: Exception) -> tuple[int, bytes]:
    raise error


def _write(path: Path, data: bytes) -> None:
    """Writes a picture. Raises UserError if another one has its name; the same one is there if this is a second run."""
    try:
        there = None if status(path) is None else read_file(path)
    except Missing as error:  # a folder
        raise UserError(f"{path} is in the way ({error})", "give the name of a new folder") from error
    if path.is_symlink() or (there is not None and there != data):
        what = f"{path} exists and is another picture"
        raise UserError(what, "give the name of a new folder; if it is new, its disk takes two keys for one")
    if there is None:
        with atomic_file(path) as stage:
            stage.write_bytes(data)
