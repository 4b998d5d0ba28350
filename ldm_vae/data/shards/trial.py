"""Tries how long packing a folder of images will take, and what its tars will hold, without writing any."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.data.shards.classes import label_of
from ldm_vae.data.shards.pack import Plan, write_shard
from ldm_vae.data.shards.scan import file_size
from ldm_vae.data.shards.tar import tar_size
from ldm_vae.data.shards.verify import BrokenFile, ReadSample, read_folder

TRIED_FOR = 3.0  # seconds
WARM_UP = 8  # samples before them


@dataclass
class Trial:
    """What came of a trial.

    tried: samples that were read, and decoded if asked.
    timed: samples whose time was taken.
    seconds: that time.
    broken: what could not be used, a file of each sample.
    """

    tried: int
    timed: int
    seconds: float
    broken: list[BrokenFile]


def try_packing(plan: Plan, *, verify: bool, channels: int | None) -> Trial:
    """Packs samples, which are in random order, into no file for `TRIED_FOR` seconds, after a few to warm up."""
    trial = Trial(0, 0, 0.0, [])

    def tried(samples: Iterator[ReadSample]) -> Iterator[ReadSample]:
        warm_up = WARM_UP if len(plan.found.samples) > 2 * WARM_UP else 0
        started = time.monotonic()
        for sample in samples:
            trial.tried += 1
            if sample.broken is None:
                yield sample
            else:
                trial.broken.append(sample.broken)
            now = time.monotonic()
            if trial.tried <= warm_up:
                started = now
                continue
            trial.timed, trial.seconds = trial.tried - warm_up, now - started
            if trial.seconds > TRIED_FOR:
                return

    with closing(read_folder(plan.found.samples, verify=verify, channels=channels)) as read:
        write_shard(Path(os.devnull), tried(read), plan.classes)
    return trial


def packed_size(plan: Plan, samples_per_shard: int) -> tuple[int, int]:
    """(bytes of the files, bytes of the tars) if nothing is broken, and no name needs a record of its own in a tar."""
    samples, classes = plan.found.samples, plan.classes
    files = packed = 0
    for start in range(0, len(samples), samples_per_shard):
        sizes = []
        for sample in samples[start : start + samples_per_shard]:
            mine = [file_size(path) for path in sample.files.values()]
            files += sum(mine)
            sizes += mine + ([len(label_of(sample, classes))] if classes.names else [])
        packed += tar_size(sizes)
    return files, packed
