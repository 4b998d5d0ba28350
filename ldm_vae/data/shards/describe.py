"""Finds what is in the shards that are named: from `index.json` beside them, from a cache of scans, or by a scan."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ldm_vae.atomic import atomic_file, explain_disk_errors
from ldm_vae.data.shards.beside import say_beside
from ldm_vae.data.shards.disk import is_file, is_folder, listed, read_file
from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.data.shards.names import compound_fields, split_name
from ldm_vae.data.shards.retry import Forbidden, Missing
from ldm_vae.data.shards.scan import add_picture_sizes, image_folder, scan_folder, scan_shard
from ldm_vae.data.shards.shard import (
    INDEX_FILE,
    INDEX_REMEDY,
    ShardIndex,
    parse_index,
    shard_from_json,
    shard_to_json,
)
from ldm_vae.data.shards.storage import RangeReader, expand_shards, read_whole
from ldm_vae.data.shards.urls import (
    folder_of,
    is_compressed,
    is_remote,
    is_signed,
    is_tar,
    name_of,
    within,
)
from ldm_vae.documents import DamagedFile, parse_object
from ldm_vae.errors import UserError
from ldm_vae.locks import exclusive
from ldm_vae.passwords import NEVER_STORED, without_secrets


def describe_shards(spec: str, cache: Path | None, *, sizes: bool) -> list[ShardIndex]:
    """The shards that `spec` names (see `expand_shards`), or the parts of the folder of images that it names.

    cache: a folder that keeps the results of scans.
    sizes: whether the sizes of their pictures are needed.
    Raises UserError for missing and broken shards, and for remote shards without an index.
    """
    local = Path(spec.removeprefix("file://"))
    whole = is_folder(local)
    if (images := image_folder(spec)) is not None:
        found = scan_folder(images)
        if not found and any(is_compressed(name) for name in listed(local)):
            expand_shards(spec)  # tells what to do
        if not found:
            raise UserError(f"no shards and no images in {local}", "give a folder of .tar files or of pictures")
        return [add_picture_sizes(shard) for shard in found] if sizes else found
    by_folder: dict[str, list[str]] = {}
    for url in expand_shards(spec):
        if is_remote(url):  # a remote folder means whatever its index names
            folder, name = (folder_of(url), name_of(url)) if is_tar(url) else (url, "")
        else:
            folder, name = str(Path(url).parent), Path(url).name
        by_folder.setdefault(folder, []).append(name)
    shards: list[ShardIndex] = []
    for folder, names in by_folder.items():
        if is_remote(folder):
            described = _remote_shards(folder, names, sizes=sizes)
        elif is_file(Path(folder) / INDEX_FILE):
            described = _indexed_shards(folder, names, sizes=sizes, whole=whole)
        else:
            described = _scanned_shards(folder, names, cache, sizes=sizes)
        _warn_of_parts(described, without_secrets(within(folder, INDEX_FILE)))
        shards += described
    if whole:
        say_beside(local)
    return sorted(shards, key=lambda shard: shard.url)


def _warn_of_parts(shards: Iterable[ShardIndex], index: str) -> None:
    """Warns of an index that takes parts of samples for samples, as those of 0.1.0 do. It is read as it is."""
    parts: list[str] = []
    for shard in shards:
        if b"." in shard.names:  # few have any, and looking at all names takes time
            fields = [(f"{shard.key(i)}.{field}", field) for i in range(shard.samples) for field in shard.fields(i)]
            compound = compound_fields([name for name, _ in fields])
            parts += [name for name, field in fields if split_name(name, compound)[1] != field]
    if parts:
        what = f"{index} takes {len(parts)} parts of samples, such as {parts[0]}, for samples of their own"
        warn_once(f"{what}: `ldm-vae check --write-index` makes it anew, for a new run")


def _remote_shards(folder: str, names: list[str], *, sizes: bool) -> list[ShardIndex]:
    url = without_secrets(within(folder, INDEX_FILE))
    try:
        content = read_whole(within(folder, INDEX_FILE))
    except (Missing, Forbidden) as error:
        if is_signed(within(folder, INDEX_FILE)) and names != [""]:  # a signature is often that of one file
            return _signed_shards(folder, names, sizes=sizes)
        if isinstance(error, Forbidden):
            raise
        what = f"{without_secrets(folder)} has no {INDEX_FILE} ({error})"
        raise UserError(what, f"remote shards need one; {INDEX_REMEDY}; {NEVER_STORED}") from error
    known = parse_index(content, url, folder)
    shards = list(known.values()) if names == [""] else _select(known, names, url)
    if sizes and any(shard.pictures is None for shard in shards):
        raise UserError(f"{url} has no sizes of pictures", f"filters by size and aspect need them; {INDEX_REMEDY}")
    return shards


def _signed_shards(folder: str, names: list[str], *, sizes: bool) -> list[ShardIndex]:
    """Shards whose URLs are signed one by one, so that nothing beside them can be read: by their headers."""
    urls = [within(folder, name) for name in names]
    warn_once(f"{without_secrets(urls[0])}: no {INDEX_FILE} can be read beside it, so that the shard is read once more")
    shards = [scan_whole(url) for url in urls]
    return [add_picture_sizes(shard) for shard in shards] if sizes else shards


def _indexed_shards(folder: str, names: list[str], *, sizes: bool, whole: bool) -> list[ShardIndex]:
    """The shards of a local folder with an index.

    whole: all its shards are meant, so that a missing one was lost.
    """
    path = Path(folder) / INDEX_FILE
    try:
        content = read_file(path)
    except Missing as error:
        raise _unreadable(str(path), error) from error
    known = parse_index(content, str(path), folder)
    shards = _select(known, names, str(path))
    if whole and len(known) > len(shards):
        gone = next(name for name in known if name not in names)
        raise UserError(f"{path} lists {gone}, which is not there", "restore the shard, or " + INDEX_REMEDY)
    with closing(RangeReader()) as reader:
        for shard in shards:
            try:
                size = reader.size(shard.url)
            except Missing as error:
                raise _unreadable(shard.url, error) from error
            if size != shard.size:
                what = f"shard {shard.url} has {size} bytes, its index says {shard.size}"
                raise UserError(what, "it was cut or changed; `ldm-vae check` shows what is left")
    return [add_picture_sizes(shard) if sizes and shard.pictures is None else shard for shard in shards]


def _scanned_shards(folder: str, names: list[str], cache: Path | None, *, sizes: bool) -> list[ShardIndex]:
    scan: Callable[[str], ShardIndex] = (lambda path: add_picture_sizes(scan_whole(path))) if sizes else scan_whole
    paths = [f"{folder}/{name}" for name in names]
    if cache is None:
        return [scan(path) for path in paths]
    return _scan_cached(folder, paths, cache, scan, "measured" if sizes else "headers")


def _scan_cached(
    folder: str, paths: list[str], cache: Path, scan: Callable[[str], ShardIndex], kind: str
) -> list[ShardIndex]:
    stored = cache / f"{kind}-{hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:16]}.json"
    with ExitStack() as stack:  # the first of several processes scans; the others wait for it and read its result
        with explain_disk_errors(stored):
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(stored.with_suffix(".lock")))
        return _known_or_scanned(folder, paths, stored, scan)


def _known_or_scanned(
    folder: str, paths: list[str], stored: Path, scan: Callable[[str], ShardIndex]
) -> list[ShardIndex]:
    known = _read_scans(stored)
    shards, changed = [], False
    with closing(RangeReader()) as reader:
        for path in paths:
            name = Path(path).name
            try:
                version = reader.version(path)
            except Missing as error:
                raise _unreadable(path, error) from error
            try:
                shard = shard_from_json(known[name]["shard"], folder) if known[name]["stamp"] == version else None
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # unknown, or damaged
                shard = None
            if shard is None or shard.url != path:
                shard, changed = scan(path), True
                known[name] = {"stamp": version, "shard": shard_to_json(shard)}
            shards.append(shard)
    if changed:
        with atomic_file(stored) as stage:
            stage.write_text(json.dumps(known, separators=(",", ":")))
    return shards


def _read_scans(stored: Path) -> dict[str, Any]:
    """What a cache of scans holds; nothing where it is missing or damaged."""
    try:
        return parse_object(read_file(stored), str(stored), "", names=True)
    except (Missing, DamagedFile):
        return {}


def _unreadable(path: str, error: Missing) -> UserError:
    return UserError(f"{without_secrets(path)} cannot be read ({error})", "check the path and what it leads to")


def scan_whole(path: str) -> ShardIndex:
    """What the headers of a tar say. Raises UserError if it cannot be read or has any problem."""
    try:
        scan = scan_shard(path)
    except Missing as error:
        raise _unreadable(path, error) from error
    if scan.problems:
        member, reason = scan.problems[0]
        more = f" and {len(scan.problems) - 1} more" if len(scan.problems) > 1 else ""
        what = f"shard {without_secrets(path)}: {member + ': ' if member else ''}{reason}{more}"
        raise UserError(what, "`ldm-vae check` lists all, and with --write-index keeps what is whole")
    return scan.shard


def _select(known: Mapping[str, ShardIndex], names: list[str], index: str) -> list[ShardIndex]:
    for name in names:
        if name not in known:
            raise UserError(f"{index} does not list {name}", "it is older than the shards; " + INDEX_REMEDY)
    return [known[name] for name in names]
