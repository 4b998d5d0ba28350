"""Packs a folder of images into tar shards that we and `webdataset` read, with `index.json` and names of classes.

A sample is a picture with the files beside it of the same name: `cats/tom.jpg`, `cats/tom.txt`, `cats/tom.json` become
key `cats/tom` with fields jpg, txt, json. A dot inside the name becomes `_`, because webdataset cuts the key there.
Pictures are packed byte by byte, as they are. The bytes of the shards depend on names, contents, seed and the number of
samples in a shard, and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from webdataset import TarWriter

from ldm_vae.atomic import atomic_folder, require_writable_folder
from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.folder import FolderSample, find_samples
from ldm_vae.data.shards.index import write_index
from ldm_vae.errors import UserError

CLASSES_FILE = "classes.json"  # beside the shards: a list of names, by the number in the field cls


@dataclass(frozen=True)
class Packed:
    """What `pack_folder` did.

    samples: how many were packed.
    shards: how many were written.
    classes: name of each class by its number; empty without classes.
    renamed: how many samples had dots in their names.
    ignored: extension -> number of files that are no picture and lie beside none.
    """

    samples: int
    shards: int
    classes: list[str]
    renamed: int
    ignored: Counter[str]


def pack_folder(folder: Path, out: Path, *, samples_per_shard: int, seed: int, classes: bool | None) -> Packed:
    """Packs every picture under `folder` into `out`, which appears whole or not at all.

    samples_per_shard: how many samples a shard holds; the last one may hold fewer.
    seed: decides the order of the samples over the shards.
    classes: whether the folder inside `folder` that a picture lies in is its class. None decides by what is there:
        pictures are labelled if all lie in such folders, if there are two folders or more, and if no picture has a cls
        file.
    Raises UserError for what cannot be packed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give a folder of images")
    require_writable_folder(out, ())
    samples, renamed, ignored = find_samples(folder)
    if not samples:
        seen = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5)) or "nothing"
        raise UserError(f"no images in {folder} (found: {seen})", f"images end in {', '.join(EXTENSIONS)}")
    names = _class_names(samples, classes)
    samples.sort(key=lambda sample: hashlib.sha256(f"{seed}/{sample.key}".encode()).digest())
    shards = [samples[i : i + samples_per_shard] for i in range(0, len(samples), samples_per_shard)]
    with atomic_folder(out) as stage, tqdm(total=len(samples), unit=" images", disable=None) as progress:
        for number, shard in enumerate(shards):
            _write_shard(stage / f"{number:06d}.tar", shard, names, progress.update)
        write_index(stage)
        if names:
            (stage / CLASSES_FILE).write_text(json.dumps(names, ensure_ascii=False))
    return Packed(len(samples), len(shards), names, renamed, ignored)


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
                fields = {field: source.read_bytes() for field, source in sample.files.items()}
            except OSError as error:
                raise UserError(f"{error.filename} cannot be read ({error.strerror})", "mend or remove it") from error
            if classes:
                fields["cls"] = str(numbers[sample.key.split("/")[0]]).encode()
            tar.write({"__key__": sample.key, **fields})
            advance()
