"""Reads the pictures of shards, in order. Threads decode them.

What is held at a time does not grow with the pictures: see `in_order`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ldm_vae.data.images.in_order import Work, in_order
from ldm_vae.data.images.peak import picture_peak
from ldm_vae.data.images.pixels import EXTENSIONS, BrokenImage, PixelArray
from ldm_vae.data.images.prepare import prepare_image
from ldm_vae.data.shards.shard import Fields, ShardIndex
from ldm_vae.latents.format import LatentJob

ReadShard = Callable[[int, ShardIndex], Iterator[tuple[str, Fields | str]]]  # as `DigestingReader.read` gives samples


@dataclass(frozen=True)
class ImageSample:
    """A sample with its decoded image.

    key: name of the sample.
    fields: fields that are carried along.
    image: (C, H, W); None if it is broken.
    reason: why it is broken.
    """

    key: str
    fields: Fields
    image: PixelArray | None
    reason: str = ""

    @property
    def bytes(self) -> int:
        """What it holds: the picture, and the fields."""
        return bytes_of(self.fields) + (0 if self.image is None else self.image.nbytes)


def bytes_of(fields: Fields) -> int:
    return sum(len(data) for data in fields.values())


def decoded(
    shards: Sequence[ShardIndex], job: LatentJob, pool: ThreadPoolExecutor, ahead: int, read: ReadShard
) -> Iterator[tuple[int, ImageSample]]:
    """Gives (number of the shard, sample) in order, while up to `ahead` samples are being decoded.

    They take `IN_FLIGHT` bytes (`in_order.py`) at most, or are one.
    """
    work = (
        Work(partial(_numbered, number, key, fields, job), _peak(fields, job))
        for number, shard in enumerate(shards)
        for key, fields in read(number, shard)
    )
    yield from in_order(work, pool, ahead=ahead, size=lambda pair: pair[1].bytes)


def _numbered(number: int, key: str, fields: Fields | str, job: LatentJob) -> tuple[int, ImageSample]:
    return number, _decode(key, fields, job)


def _peak(fields: Fields | str, job: LatentJob) -> int:
    """Bytes that a sample takes while its picture is decoded, by the header of the picture."""
    if isinstance(fields, str):
        return 0
    extension = _extension(fields)
    return bytes_of(fields) + (0 if extension is None else picture_peak(fields[extension], extension, job.image))


def _extension(fields: Fields) -> str | None:
    """The member that is the picture."""
    return next((name for name in EXTENSIONS if name in fields), None)


def _decode(key: str, fields: Fields | str, job: LatentJob) -> ImageSample:
    if isinstance(fields, str):
        return ImageSample(key, {}, None, fields)
    extension = _extension(fields)
    if extension is None:
        return ImageSample(key, fields, None, "no picture among its members")
    carried = fields if job.keep_image else {name: data for name, data in fields.items() if name != extension}
    try:
        image = prepare_image(fields[extension], extension, job.image, None).floats()
    except BrokenImage as error:
        return ImageSample(key, carried, None, error.reason)
    return ImageSample(key, carried, image)
