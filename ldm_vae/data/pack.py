"""A folder of images -> tar shards that `webdataset` and we read, with `index.json` and the names of the classes.

A sample is a picture with the files beside it of the same name: `cats/tom.jpg`, `cats/tom.txt`, `cats/tom.json` become
key `cats/tom` with fields jpg, txt, json. A dot inside the name becomes `_`, because webdataset cuts the key there.
Pictures are packed as they are, byte by byte. The bytes of the shards depend on names, contents, seed and count alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from webdataset import TarWriter

from ldm_vae.atomic import atomic_folder
from ldm_vae.data.images import EXTENSIONS
from ldm_vae.data.index import split_name, write_index
from ldm_vae.errors import UserError

SIDECARS = ("cls", "json", "txt")
CLASSES = "classes.json"  # beside the shards: a list of names, by the number in the field cls


@dataclass(frozen=True)
class Sample:
    """key: unique in the shards.   files: field -> file."""

    key: str
    files: dict[str, Path]


@dataclass(frozen=True)
class Packed:
    """classes: names by number, empty without.   renamed: samples with dots in their names.
    ignored: extension -> number of files that are neither picture nor beside one."""

    samples: int
    shards: int
    classes: list[str]
    renamed: int
    ignored: Counter[str]


def pack_folder(folder: Path, out: Path, *, samples_per_shard: int, seed: int, classes: bool | None) -> Packed:
    """Packs every picture under `folder` into `out`, which appears whole or not at all.

    seed: of the order of the samples over the shards.
    classes: label each picture with the folder of `folder` that it lies in; None: if every picture lies in one, there
    are two or more, and no picture has a cls file. Raises UserError for what cannot be packed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give a folder of images")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty", "give a new folder, or remove this one first")
    samples, renamed, ignored = _find_samples(folder)
    if not samples:
        seen = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5)) or "nothing"
        raise UserError(f"no images in {folder} (found: {seen})", f"images end in {', '.join(EXTENSIONS)}")
    names = _class_names(folder, samples, classes)
    samples.sort(key=lambda sample: hashlib.sha256(f"{seed}/{sample.key}".encode()).digest())
    shards = [samples[i : i + samples_per_shard] for i in range(0, len(samples), samples_per_shard)]
    with atomic_folder(out.resolve()) as stage, tqdm(total=len(samples), unit=" images", disable=None) as progress:
        for number, shard in enumerate(shards):
            _write_shard(stage / f"{number:06d}.tar", shard, names, progress.update)
        write_index(stage)
        if names:
            (stage / CLASSES).write_text(json.dumps(names, ensure_ascii=False))
    return Packed(len(samples), len(shards), names, renamed, ignored)


def _find_samples(folder: Path) -> tuple[list[Sample], int, Counter[str]]:
    """-> samples, number of those renamed, ignored files by extension."""
    found: dict[str, dict[str, Path]] = {}  # name without extension -> field -> file
    ignored: Counter[str] = Counter()
    for path in _walk(folder):
        stem, field = split_name(path.relative_to(folder).as_posix())
        if field not in EXTENSIONS and field not in SIDECARS:
            ignored[f".{field}" if field else "without extension"] += 1
        elif field in (files := found.setdefault(stem, {})):
            raise _clash(files[field], path)
        else:
            files[field] = path
    samples: dict[str, Sample] = {}
    renamed = 0
    for stem, files in found.items():
        pictures = [files[field] for field in EXTENSIONS if field in files]
        if not pictures:
            ignored.update(f".{field}" for field in files)
            continue
        head, slash, base = stem.rpartition("/")
        key = head + slash + base.replace(".", "_")
        if len(pictures) > 1:
            raise _clash(*pictures[:2])
        if key in samples:
            raise _clash(next(iter(samples[key].files.values())), pictures[0])
        samples[key] = Sample(key, files)
        renamed += key != stem
    return list(samples.values()), renamed, ignored


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below, sorted, links to files included; nothing hidden; no linked folder, which may be a circle."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})", "change its rights or remove it")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(parent, name)
            if not path.is_file():
                raise UserError(f"{path} is no file (a broken link?)", "remove it")
            try:
                name.encode()
            except UnicodeEncodeError:
                raise UserError(f"the name of {os.fsencode(path)!r} is no UTF-8", "rename it") from None
            yield path


def _class_names(folder: Path, samples: Sequence[Sample], classes: bool | None) -> list[str]:
    """Sorted names of the folders that samples lie in; empty where they are not labels."""
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


def _write_shard(path: Path, samples: Iterable[Sample], classes: Sequence[str], advance: Callable[[], object]) -> None:
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


def _clash(first: Path, second: Path) -> UserError:
    return UserError(f"{first} and {second} would be one sample", "rename or remove one")
