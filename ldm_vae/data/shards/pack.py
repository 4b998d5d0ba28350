"""Packs a folder of images into tar shards that we and `webdataset` read, with `index.json` and names of classes.

A sample is a picture with the files beside it of the same name: `cats/tom.jpg`, `cats/tom.txt`, `cats/tom.json` become
key `cats/tom` with fields jpg, txt, json (`folder.py` says how).
Pictures are packed byte by byte, as they are. The bytes of the shards depend on names, contents, seed and the number of
samples in a shard, and on nothing else. A sample with a file that cannot be used is left out, and `broken.jsonl` names
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path

from webdataset import TarWriter

from ldm_vae.atomic import atomic_folder, require_writable_folder
from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.classes import CLASSES_FILE, Classes, find_classes, label_of
from ldm_vae.data.shards.disk import is_folder
from ldm_vae.data.shards.folder import FoundSamples, find_samples
from ldm_vae.data.shards.index import write_index
from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.shards.verify import BrokenFile, ReadSample, read_folder
from ldm_vae.errors import UserError

BROKEN_FILE = "broken.jsonl"  # beside the shards: a line for each sample that was left out because it is broken


@dataclass(frozen=True)
class Plan:
    """What is to be packed.

    found: what the folder holds, its samples in the order of the shards.
    classes: of the samples.
    """

    found: FoundSamples
    classes: Classes


@dataclass
class Packed:
    """What `pack_folder` did.

    plan: what was to be packed.
    samples: how many were packed.
    shards: how many were written.
    written: bytes of the tars.
    broken: why samples were left out, a file of each.
    """

    plan: Plan
    samples: int = 0
    shards: int = 0
    written: int = 0
    broken: list[BrokenFile] = field(default_factory=list)


def plan_packing(folder: Path, *, seed: int, classes: bool | None, classes_from: Path | None = None) -> Plan:
    """Finds what is in a folder of images.

    seed: decides the order of the samples over the shards.
    classes: whether the folder inside `folder` that a picture lies in is its class; None decides by what is there.
    classes_from: a folder of shards, whose classes with their numbers these are (`find_classes`).
    Raises UserError for what cannot be packed.
    """
    if not is_folder(folder):
        raise UserError(f"{folder} is no folder", "give a folder of images")
    found = find_samples(folder)
    if not found.samples:
        seen = str(found.left_out) or "nothing"
        raise UserError(f"no images in {folder} (found: {seen})", f"images end in {', '.join(EXTENSIONS)}")
    known = find_classes(found.samples, classes, classes_from)
    found.samples.sort(key=lambda sample: hashlib.sha256(f"{seed}/{sample.key}".encode()).digest())
    return Plan(found, known)


def pack_folder(
    folder: Path,
    out: Path,
    *,
    samples_per_shard: int,
    seed: int,
    classes: bool | None,
    classes_from: Path | None = None,
    verify: bool = True,
    channels: int | None = None,
    done: Callable[[int, int], None] = lambda count, total: None,
) -> Packed:
    """Packs every picture under `folder` into `out`, which appears whole or not at all.

    samples_per_shard: how many samples a shard holds; the last one may hold fewer.
    seed, classes, classes_from: as in `plan_packing`.
    verify: decodes pictures, labels and texts, and leaves out what is broken.
    channels: of the images; None takes those that an npy or tiff file has, and 3 for all others.
    done(samples, total): called as samples are read.
    Raises UserError for what cannot be packed, and if all of it is broken.
    """
    require_writable_folder(out, ())
    plan = plan_packing(folder, seed=seed, classes=classes, classes_from=classes_from)
    packed = Packed(plan)
    total = len(plan.found.samples)

    def whole(samples: Iterable[ReadSample]) -> Iterator[ReadSample]:
        for sample in samples:
            if sample.broken is None:
                yield sample
            else:
                packed.broken.append(sample.broken)
            done(1, total)

    done(0, total)
    with (
        atomic_folder(out) as stage,
        closing(read_folder(plan.found.samples, verify=verify, channels=channels)) as read,
    ):
        samples = whole(read)
        while (first := next(samples, None)) is not None:
            path = stage / f"{packed.shards:06d}.tar"
            packed.samples += write_shard(path, chain([first], islice(samples, samples_per_shard - 1)), plan.classes)
            packed.written += path.stat().st_size
            packed.shards += 1
        if not packed.samples:
            first_broken = packed.broken[0]
            what = f"no image of {folder} is whole, such as {first_broken.url} ({first_broken.reason})"
            raise UserError(what, "mend them; --channels says how many channels they have, where that is not 3")
        write_index(stage)
        if plan.classes.names:
            (stage / CLASSES_FILE).write_text(json.dumps(plan.classes.names, ensure_ascii=False))
        if packed.broken:
            lines = (json.dumps(asdict(broken)) for broken in packed.broken)
            (stage / BROKEN_FILE).write_text("".join(f"{line}\n" for line in lines))
    return packed


def write_shard(path: Path, samples: Iterable[ReadSample], classes: Classes) -> int:
    """Writes a tar, and returns the number of samples in it."""
    written = 0
    # PAX: names of any length and alphabet. mtime 0 and no user: equal input gives equal bytes.
    with (
        path.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT") as tar,
    ):
        for read in samples:
            label = {LABEL: label_of(read.sample, classes)} if classes.names else {}
            tar.write({"__key__": read.sample.key, **read.fields, **label})
            written += 1
    return written
