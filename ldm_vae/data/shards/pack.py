"""Packs a folder of images into tar shards that we and `webdataset` read, with `index.json` and names of classes.

A sample is a picture with the files beside it of the same name: `cats/tom.jpg`, `cats/tom.txt`, `cats/tom.json` become
key `cats/tom` with fields jpg, txt, json (`folder.py` says how).
Pictures are packed byte by byte, as they are. The bytes of the shards depend on names, contents, seed and the number of
samples in a shard, and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from webdataset import TarWriter

from ldm_vae.atomic import atomic_folder, require_writable_folder
from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.disk import is_folder, read_file
from ldm_vae.data.shards.folder import FolderSample, FoundSamples, find_samples
from ldm_vae.data.shards.index import write_index
from ldm_vae.data.shards.retry import Missing
from ldm_vae.errors import UserError

DIGITS, HASH = re.compile("[0-9]+"), re.compile("[0-9a-f]+")
CLASSES_FILE = "classes.json"  # beside the shards: a list of names, by the number in the field cls


@dataclass(frozen=True)
class Packed:
    """What `pack_folder` did.

    samples: how many were packed.
    shards: how many were written.
    classes: name of each class by its number; empty without classes.
    numbered: a folder that counts images, and is no class; None if there is none, or if no one asks for classes.
    found: what the folder holds, and what is left out.
    """

    samples: int
    shards: int
    classes: list[str]
    numbered: str | None
    found: FoundSamples


def pack_folder(folder: Path, out: Path, *, samples_per_shard: int, seed: int, classes: bool | None) -> Packed:
    """Packs every picture under `folder` into `out`, which appears whole or not at all.

    samples_per_shard: how many samples a shard holds; the last one may hold fewer.
    seed: decides the order of the samples over the shards.
    classes: whether the folder inside `folder` that a picture lies in is its class. None decides by what is there:
        pictures are labelled if all lie in such folders, if there are two folders or more, if no picture has a cls
        file, and if the folders do not just count images, as those of img2dataset do.
    Raises UserError for what cannot be packed.
    """
    if not is_folder(folder):
        raise UserError(f"{folder} is no folder", "give a folder of images")
    require_writable_folder(out, ())
    found = find_samples(folder)
    samples = found.samples
    if not samples:
        seen = str(found.left_out) or "nothing"
        raise UserError(f"no images in {folder} (found: {seen})", f"images end in {', '.join(EXTENSIONS)}")
    names = _class_names(samples, classes)
    numbered = None
    if classes is None and names and _count_images(samples):
        numbered, names = names[0], []
    samples.sort(key=lambda sample: hashlib.sha256(f"{seed}/{sample.key}".encode()).digest())
    shards = [samples[i : i + samples_per_shard] for i in range(0, len(samples), samples_per_shard)]
    with atomic_folder(out) as stage, tqdm(total=len(samples), unit=" images", disable=None) as progress:
        for number, shard in enumerate(shards):
            _write_shard(stage / f"{number:06d}.tar", shard, names, progress.update)
        write_index(stage)
        if names:
            (stage / CLASSES_FILE).write_text(json.dumps(names, ensure_ascii=False))
    return Packed(len(samples), len(shards), names, numbered, found)


def _class_names(samples: Sequence[FolderSample], classes: bool | None) -> list[str]:
    """Sorted names of the folders that the samples lie in; empty if they are not labels."""
    if classes is False:
        return []
    outside = next((sample for sample in samples if "/" not in sample.key), None)
    labelled = next((sample for sample in samples if "cls" in sample.files), None)
    if classes:
        for sample, reason in ((outside, "lies in no folder of a class"), (labelled, "has a cls file already")):
            if sample is not None:
                path = next(iter(sample.files.values()))
                raise UserError(f"{path} {reason}", "move it, or leave --classes out")
    names = sorted({sample.key.split("/")[0] for sample in samples})
    obvious = outside is None and labelled is None and len(names) > 1
    return names if classes or obvious else []


def _count_images(samples: Sequence[FolderSample]) -> bool:
    """Whether the folders hold so many images each, and are no classes.

    Their names are numbers (or digits of a hash) of one length, and so are those of the pictures. Either the name of
    each picture begins with that of its folder (`00012/000120345.jpg` by img2dataset, `3f/3f09ab.jpg`), or counts on
    from it (`01000/01999.png`).
    """
    folders: dict[str, list[str]] = {}
    for sample in samples:
        folder, *_, name = sample.key.split("/")
        folders.setdefault(folder, []).append(name)
    pairs = [(folder, name) for folder, names in folders.items() for name in names]
    lengths = {(len(folder), len(name)) for folder, name in pairs}
    width, longer = min(lengths)
    if len(lengths) > 1 or width < 2 or not all(HASH.fullmatch(folder + name) for folder, name in pairs):
        return False
    if longer > width + 1:
        return all(name.startswith(folder) for folder, name in pairs)
    if longer != width or not all(DIGITS.fullmatch(folder + name) for folder, name in pairs):
        return False
    bounds = zip(sorted(folders), [*sorted(folders)[1:], "9" * width], strict=True)
    return all(first <= name <= end for first, end in bounds for name in folders[first])


def _write_shard(
    path: Path, samples: Iterable[FolderSample], classes: Sequence[str], advance: Callable[[], object]
) -> None:
    numbers = {name: number for number, name in enumerate(classes)}
    # PAX: names of any length and alphabet. mtime 0 and no user: equal input gives equal bytes.
    with (
        path.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT") as tar,
    ):
        for sample in samples:
            try:
                fields = {field: read_file(source) for field, source in sample.files.items()}
            except Missing as error:
                what = f"a file of {sample.key} is gone ({error})"
                raise UserError(what, "put it back, or run this again") from error
            if classes:
                fields["cls"] = str(numbers[sample.key.split("/")[0]]).encode()
            tar.write({"__key__": sample.key, **fields})
            advance()
