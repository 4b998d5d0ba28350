"""Finds the samples in a folder of images: each is a picture with the files of the same name beside it.

`cats/tom.jpg`, `cats/tom.txt`, `cats/tom.json` become key `cats/tom` with fields jpg, txt, json; `cats/tom.seg.png` is
field seg.png of it, by the rule of `names.py`. Any other dot inside the name becomes `_`, because webdataset cuts the
key there. Links to folders are followed, and each folder is read once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.disk import listed, status
from ldm_vae.data.shards.left_out import Kind, LeftOut
from ldm_vae.data.shards.names import LABEL, compound_fields, split_name
from ldm_vae.errors import UserError

SIDECARS = (LABEL, "json", "txt")
LISTED = 10  # names that a message lists


@dataclass(frozen=True)
class FolderSample:
    """A picture in a folder, with the files of the same name beside it.

    key: name of the sample, unique in the shards.
    files: field -> path of the file.
    """

    key: str
    files: dict[str, Path]


@dataclass(frozen=True)
class FoundSamples:
    """What a folder of images holds.

    samples: in the order of folders and names.
    renamed: the names that had dots inside.
    parts: the files that belong to a sample by a field with a dot, such as masks.
    left_out: files of other kinds, files beside no picture, and folders that are read already.
    """

    samples: list[FolderSample]
    renamed: list[str]
    parts: list[Path]
    left_out: LeftOut


def find_samples(folder: Path) -> FoundSamples:
    """The samples in a folder.

    Raises UserError, which lists them, if files would become one sample, and if something cannot be read.
    """
    left_out = LeftOut()
    paths: dict[str, Path] = {}
    unnamed: list[str] = []
    for path in _walk(folder, left_out):
        name = path.relative_to(folder).as_posix()
        if not name.isascii() and not _is_utf8(name):
            unnamed.append(name)
            continue
        field = split_name(name)[1]
        if field in EXTENSIONS or field in SIDECARS:
            paths[name] = path
        else:
            left_out.add(Kind(f".{field}") if field else Kind("file", "without extension"), name)
    if unnamed:
        more = f" and {len(unnamed) - LISTED} more" if len(unnamed) > LISTED else ""
        raise UserError(f"names in {folder} that are no UTF-8: {', '.join(unnamed[:LISTED])}{more}", "rename them")
    compound = compound_fields(paths)
    clashes: list[tuple[Path, Path]] = []
    found: dict[str, dict[str, Path]] = {}  # name without the field -> field -> file
    for name, path in paths.items():
        stem, field = split_name(name, compound)
        first = found.setdefault(stem, {}).setdefault(field, path)
        if first != path:
            clashes.append((first, path))
    samples: dict[str, FolderSample] = {}
    renamed: list[str] = []
    for stem, files in found.items():
        pictures = [files[field] for field in EXTENSIONS if field in files]
        if not pictures:
            for field, path in files.items():
                left_out.add(Kind(f".{field}"), path.relative_to(folder).as_posix())
            continue
        head, slash, base = stem.rpartition("/")
        key = head + slash + base.replace(".", "_")
        clashes += [(pictures[0], other) for other in pictures[1:]]
        if key in samples:
            clashes.append((next(iter(samples[key].files.values())), pictures[0]))
            continue
        samples[key] = FolderSample(key, files)
        renamed += [stem] if key != stem else []
    if clashes:
        raise _clash(clashes)
    parts = [path for sample in samples.values() for field, path in sample.files.items() if field in compound]
    return FoundSamples(list(samples.values()), renamed, parts, left_out)


def _walk(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """Every file in a folder and below, sorted, without hidden ones. A folder that two links lead to is read once."""

    def unseen(path: Path, found: os.stat_result) -> bool:
        new = (found.st_dev, found.st_ino) not in seen
        seen.add((found.st_dev, found.st_ino))
        if not new:
            left_out.add(Kind("link", "to a folder that is read already"), path.relative_to(folder).as_posix())
        return new

    seen: set[tuple[int, int]] = set()
    if (top := status(folder)) is not None:
        unseen(folder, top)
    pending = [folder]
    while pending:
        parent = pending.pop()
        folders: list[Path] = []
        for path in (parent / name for name in listed(parent) if not name.startswith(".")):
            found = status(path)
            if found is not None and stat.S_ISDIR(found.st_mode):
                folders += [path] if unseen(path, found) else []
                continue
            if found is None or not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path} is no file (a broken link?)", "remove it")
            yield path
        pending += reversed(folders)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clash(pairs: list[tuple[Path, Path]]) -> UserError:
    listed = "; ".join(f"{first} and {second}" for first, second in pairs[:LISTED])
    if len(pairs) == 1:
        return UserError(f"{listed} would be one sample", "rename or remove one")
    more = f"; and {len(pairs) - LISTED} more" if len(pairs) > LISTED else ""
    return UserError(f"{len(pairs)} pairs of files would be one sample each: {listed}{more}", "rename or remove them")
