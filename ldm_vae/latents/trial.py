"""Tries what encoding will give and how long it will take: counts bytes from the index, and times some images.

Nothing is written, neither into the folder of latents nor into the cache of digests.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.images.resize import resized
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.samples import read_samples
from ldm_vae.data.shards.scan import add_picture_sizes
from ldm_vae.data.shards.shard import ShardIndex
from ldm_vae.data.shards.tar import member_size, tar_size
from ldm_vae.data.shards.urls import is_remote
from ldm_vae.latents.encode import gone_error, names_of, refuse_other_files
from ldm_vae.latents.folder import begun_job, npy_file, read_records
from ldm_vae.latents.format import LatentJob, stored_arrays
from ldm_vae.latents.pictures import decoded
from ldm_vae.latents.stream import WINDOW_BATCHES, EncodedSample, each_batch, encoded, made_ahead
from ldm_vae.noise import rng

TRIED_FOR = 5.0  # seconds
WINDOWS = 64  # windows of images at most, from all over the shards; the first one warms up
HEADERS_READ = 10_000  # images whose sizes are read from their files
VALUE = np.dtype(np.float16).itemsize


@dataclass
class Trial:
    """What came of a trial.

    tried: images that were encoded, or left out.
    timed: images whose time was taken; all of them only where they are too few to warm up.
    seconds: that time.
    shapes: of what is stored, (C, h, w), and how many images had each.
    left_out: (key, reason) of those that would be left out.
    stored: bytes of what is stored of those that were not, with headers and padding in a tar.
    """

    tried: int = 0
    timed: int = 0
    seconds: float = 0.0
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    stored: int = 0

    def add(self, sample: EncodedSample) -> None:
        self.tried += 1
        if sample.arrays is None:
            self.left_out.append((sample.key, sample.reason))
            return
        self.shapes[next(iter(sample.arrays.values())).shape] += 1
        members = [len(npy_file(array)) for array in sample.arrays.values()]
        members += [len(data) for data in sample.fields.values()]
        self.stored += sum(map(member_size, members))


def missing_shards(index: Index, folder: Path, job: LatentJob, *, prune: bool) -> tuple[list[ShardIndex], int]:
    """The shards of which a folder has no finished tar, and how many it has.

    Whether these were made from what the shards hold now is not looked at, because all would have to be read.
    Raises UserError if the folder holds other latents, files that are none of ours, or latents of shards that are gone.
    """
    named = dict(zip(names_of(index), index.shards, strict=True))
    begun = begun_job(folder, job)
    records = {} if begun is None else read_records(folder, begun)
    gone = [name for name in records if name not in named]
    if gone and not prune:
        raise gone_error(folder, job, gone)
    missing = {name: shard for name, shard in named.items() if name not in records}
    if begun is not None:
        refuse_other_files(folder, begun, missing)
    return list(missing.values()), len(named) - len(missing)


def latent_bytes(shards: Sequence[ShardIndex], job: LatentJob) -> int | None:
    """Bytes of the tars of these shards if no image is left out; None where the sizes of the images are not known.

    Of up to `HEADERS_READ` images in local files, the headers tell the sizes that no index has.
    """
    unknown = [shard for shard in shards if job.crop is None and shard.pictures is None]
    if sum(shard.samples for shard in unknown) <= HEADERS_READ and not any(is_remote(shard.url) for shard in unknown):
        shards = [add_picture_sizes(shard) if shard in unknown else shard for shard in shards]
    sizes = [_tar_bytes(shard, job) for shard in shards]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def try_encoding(codec: LatentCodec, shards: Sequence[ShardIndex], job: LatentJob, *, workers: int) -> Trial:
    """Encodes images for `TRIED_FOR` seconds, after a window of them to warm up, as `encode_shards` does.

    shards: where they come from, at places that are spread over all.
    workers: threads that decode pictures.
    """
    trial = Trial()
    window = job.batch * (torch.get_num_threads() if codec.device.type == "cpu" else WINDOW_BATCHES)
    parts = list(_parts(shards, window, job.seed))
    with (
        ThreadPoolExecutor(workers) as pool,
        each_batch(codec.device) as each,
        closing(
            made_ahead(decoded(parts, job, pool, 2 * workers, lambda _, shard: read_samples(shard)), depth=2)
        ) as pictures,
    ):
        started = time.monotonic()
        for number, samples in groupby(encoded(codec, job, pictures, each), key=lambda pair: pair[0]):
            before = trial.tried
            for _, sample in samples:
                trial.add(sample)
            now = time.monotonic()
            if number == 0 and len(parts) > 1:
                started = now
                continue
            trial.timed, trial.seconds = trial.timed + trial.tried - before, now - started
            if trial.seconds > TRIED_FOR:
                break
    return trial


def _parts(shards: Sequence[ShardIndex], window: int, seed: int) -> Iterator[ShardIndex]:
    """Up to `WINDOWS` runs of up to `window` images, in random order."""
    starts = [(shard, start) for shard in shards for start in range(0, shard.samples, window)]
    for place in rng(seed, "trial").permutation(len(starts))[:WINDOWS]:
        shard, start = starts[place]
        ordinals = np.arange(shard.samples)
        yield shard.subset((ordinals >= start) & (ordinals < start + window))


def _tar_bytes(shard: ShardIndex, job: LatentJob) -> int | None:
    """Bytes of the tar of one shard."""
    sizes = _fitted(shard, job)
    if sizes is None:
        return None
    positions = (-(-sizes // job.multiple) * (job.multiple // job.factor)).prod(axis=1)
    arrays = [array.channels for array in stored_arrays(job).values()]
    header = len(npy_file(np.empty((1, 1, 1), np.float16))) - VALUE
    members = [size for channels in arrays for size in (header + VALUE * channels * positions).tolist()]
    for table in _carried(shard, job).values():
        members += table[:, 1][table[:, 0] >= 0].tolist()
    return tar_size(members)


def _carried(shard: ShardIndex, job: LatentJob) -> Mapping[str, NDArray[np.int64]]:
    """The places of the fields that are carried along: all but the picture of each sample."""
    if job.keep_image:
        return shard.members
    carried = dict(shard.members)
    pictured = np.zeros(shard.samples, dtype=bool)
    for name in EXTENSIONS:
        if name in carried:
            table = carried[name].copy()
            mine = (table[:, 0] >= 0) & ~pictured
            table[mine, 0] = -1
            pictured |= mine
            carried[name] = table
    return carried


def _fitted(shard: ShardIndex, job: LatentJob) -> NDArray[np.int64] | None:
    """(samples, 2) sides of the images before padding, in pixels; None where they are not known.

    Turned by their orientation or not: it makes no difference to their latent's size.
    """
    if job.crop is not None:
        return np.full((shard.samples, 2), job.crop)
    if shard.pictures is None or not shard.pictures.all():
        return None
    if job.resize is None:
        return shard.pictures
    short, kind = job.resize, job.resize_filter
    return np.array([resized(height, width, short, kind) for width, height in shard.pictures.tolist()], dtype=np.int64)
