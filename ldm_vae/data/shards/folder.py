"""Finds the samples in a folder of images: each is a picture with the files of the same name beside it.

`cats/tom.jpg`, `cats/tom.txt`, `cats/tom.json` become key `cats/tom` with fields jpg, txt, json. A dot inside the name
becomes `_`, because webdataset cuts the key there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.shard import split_name
from ldm_vae.errors import UserError

SIDECARS = ("cls", "json", "txt")


@dataclass(frozen=True)
class FolderSample:
    """A picture in a folder, with the files of the same name beside it.

    key: name of the sample, unique in the shards.
    files: field -> path of the file.
    """

    key: str
    files: dict[str, Path]


def find_samples(folder: Path) -> tuple[list[FolderSample], int, Counter[str]]:
    """The samples sorted by folder and name, how many were renamed, and how many files of each kind are ignored.

    Raises UserError if two files would become one sample, and if something cannot be read.
    """
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
    samples: dict[str, FolderSample] = {}
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
        samples[key] = FolderSample(key, files)
        renamed += key != stem
    return list(samples.values()), renamed, ignored


def _walk(folder: Path) -> Iterator[Path]:
    """Every file in a folder and below, sorted, without hidden files and linked folders, which may form a circle."""

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


def _clash(first: Path, second: Path) -> UserError:
    return UserError(f"{first} and {second} would be one sample", "rename or remove one")
