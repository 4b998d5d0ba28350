"""Finds what lies beside the shards of a folder and looks like data, but is read by nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.disk import is_folder, listed
from ldm_vae.data.shards.left_out import Kind, LeftOut
from ldm_vae.data.shards.urls import is_compressed


def beside_shards(folder: Path) -> Iterator[tuple[Kind, str]]:
    """(kind, name) of everything in a folder of shards that looks like data and is no shard of it, sorted by name."""
    for path in (folder / name for name in listed(folder)):
        kind = None if path.name.startswith(".") else _kind(path)
        if kind is not None:
            yield kind, path.name


def say_beside(folder: Path) -> None:
    """Warns, once, of what `beside_shards` finds."""
    left_out = LeftOut()
    for kind, name in beside_shards(folder):
        left_out.add(kind, name)
    left_out.say(str(folder))


def _kind(path: Path) -> Kind | None:
    if is_folder(path):
        holds = any(name.endswith(".tar") or _picture(name) for name in listed(path))
        return Kind("folder", "of shards or pictures") if holds else None
    if is_compressed(path.name):
        return Kind("compressed archive", "to be unpacked first")
    if path.suffix != ".tar" and path.suffix.lower() == ".tar":
        return Kind("archive", "with a name that does not end in .tar")
    return Kind("picture", "in no shard") if _picture(path.name) else None


def _picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS
