"""Reads the samples of a folder of images, and finds those that are broken: threads decode what is read, in order."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.in_order import Work, in_order
from ldm_vae.data.images.peak import picture_peak
from ldm_vae.data.images.pixels import EXTENSIONS, BrokenImage
from ldm_vae.data.shards.content import content_problem, own_channels
from ldm_vae.data.shards.disk import read_file
from ldm_vae.data.shards.folder import FolderSample
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.shard import Fields
from ldm_vae.errors import UserError
from ldm_vae.waiting import usable_cores


@dataclass(frozen=True)
class BrokenFile:
    """A file that cannot be used.

    url: its path.
    key: the sample that it belongs to.
    reason: what is wrong with it, in one line.
    """

    url: str
    key: str
    reason: str


@dataclass(frozen=True)
class ReadSample:
    """A sample that was read.

    fields: name -> content.
    broken: the first of its files that cannot be used; None where nothing was found, or nobody looked.
    """

    sample: FolderSample
    fields: Fields
    broken: BrokenFile | None = None

    @property
    def bytes(self) -> int:
        return sum(map(len, self.fields.values()))


def read_folder(
    samples: Iterable[FolderSample], *, verify: bool, channels: int | None
) -> Generator[ReadSample, None, None]:
    """Gives the samples in their order.

    verify: decodes all that somebody reads: pictures, labels, texts.
    channels: of the images; None takes those that an npy or tiff file has, and 3 for all others.
    Raises UserError if a file is gone, and the errors of a disk that fails.
    """
    if not verify:
        yield from map(_read, samples)
        return
    threads = max(1, int(usable_cores()))
    with ThreadPoolExecutor(threads) as pool:
        read = map(_read, samples)
        work = (Work(partial(_verified, each, channels), each.bytes + _peak(each.fields, channels)) for each in read)
        yield from in_order(work, pool, ahead=2 * threads, size=lambda each: each.bytes)


def _read(sample: FolderSample) -> ReadSample:
    try:
        return ReadSample(sample, {field: read_file(path) for field, path in sample.files.items()})
    except Missing as error:
        raise UserError(f"a file of {sample.key} is gone ({error})", "put it back, or run this again") from error


def _verified(read: ReadSample, channels: int | None) -> ReadSample:
    for field, data in read.fields.items():
        if (reason := content_problem(field, data, channels)) is not None:
            path = read.sample.files[field]
            return ReadSample(read.sample, read.fields, BrokenFile(str(path), read.sample.key, reason))
    return read


def _peak(fields: Fields, channels: int | None) -> int:
    """Bytes that the largest picture takes while it is decoded; 0 if its header is damaged."""
    peaks = [0]
    for field in set(fields).intersection(EXTENSIONS):
        try:
            config = ImageConfig(channels=channels or own_channels(field, fields[field]))
        except (BrokenImage, ValueError):  # more channels than a picture may have, too
            continue
        peaks.append(picture_peak(fields[field], field, config))
    return max(peaks)
