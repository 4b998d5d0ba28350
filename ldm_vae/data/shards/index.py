"""The index of a data set: what is in all its shards, from `index.json` (see `shard.py`) or from their headers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from ldm_vae.atomic import atomic_file, explain_disk_errors
from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.beside import say_beside
from ldm_vae.data.shards.disk import is_file, is_folder, listed, read_file
from ldm_vae.data.shards.left_out import Kind, LeftOut, warn_once
from ldm_vae.data.shards.names import compound_fields, split_name
from ldm_vae.data.shards.retry import Forbidden, Missing
from ldm_vae.data.shards.scan import add_picture_sizes, image_folder, scan_folder, scan_shard
from ldm_vae.data.shards.shard import (
    INDEX_FILE,
    INDEX_REMEDY,
    ShardIndex,
    dump_index,
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
from ldm_vae.passwords import NEVER_STORED, keep_aside, without_secrets
from ldm_vae.recipe import Config

logger = logging.getLogger(__name__)


Place = Annotated[str, AfterValidator(keep_aside)]  # so no recipe, checkpoint or result stores a password


class SourceConfig(Config):
    """One source of training images, in a mixture of several."""

    shards: Place
    """Folder, glob, brace pattern or URL of tars; or a folder of images."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share of the samples, relative to the weights of the other sources."""

    minimum_side: Annotated[int, Field(gt=0)] | None = None
    """In pixels: images with a shorter side are left out; null keeps them."""

    maximum_aspect: Annotated[float, Field(ge=1)] | None = None
    """Long side / short side: longer images are left out; null keeps them."""

    @property
    def filters(self) -> bool:
        return self.minimum_side is not None or self.maximum_aspect is not None


@dataclass(frozen=True)
class Part:
    """The shards of one source of a mixture.

    first: number of its first shard in the index.
    stop: number after its last shard.
    weight: its share of all samples, against the other sources.
    """

    first: int
    stop: int
    weight: float


@dataclass(frozen=True, eq=False)
class Index:
    """What is in the shards of a data set.

    shards: all shards, source after source, sorted by URL within a source; each has at least one sample.
    parts: the sources.
    """

    shards: tuple[ShardIndex, ...]
    parts: tuple[Part, ...]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many samples each shard has."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def samples(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """The weight of each part."""
        return tuple(part.weight for part in self.parts)

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, ordinal) of sample `number` in the order of the index."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, int(number - (self._ends[shard] - self.counts[shard]))

    def range_of_part(self, shard: int) -> tuple[int, int]:
        """(first, count) of the samples of the source that a shard belongs to, in the order of the index."""
        part = next(part for part in self.parts if part.first <= shard < part.stop)
        return int(self.counts[: part.first].sum()), int(self.counts[part.first : part.stop].sum())

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.counts)

    @cached_property
    def fields(self) -> dict[str, int]:
        """Name of a field -> number of samples that have it."""
        totals: dict[str, int] = {}
        for shard in self.shards:
            for field, table in shard.members.items():
                totals[field] = totals.get(field, 0) + int((table[:, 0] >= 0).sum())
        return totals

    @cached_property
    def fingerprint(self) -> str:
        """A hash that is equal for the same data in the same order, wherever the shards lie."""
        digest = hashlib.sha256(repr(self.parts).encode())
        for shard in self.shards:
            digest.update(f"{shard.name}\n{shard.size}\n{shard.samples}\n".encode("utf-8", "surrogateescape"))
            digest.update(shard.names)
        return digest.hexdigest()


def load_index(spec: str | Sequence[SourceConfig], *, cache: Path | None = None) -> Index:
    """The index of shards: from `index.json` beside them, or by a scan if they are local.

    spec: names shards (see `expand_shards`) or a folder of images; or several sources, which are mixed by weight and
        filtered by the sizes of their pictures.
    cache: a folder that keeps the results of scans. A shard that has changed since then is scanned again.
    Raises UserError for missing, empty and broken shards, and for remote shards without an index.
    """
    shards: list[ShardIndex] = []
    parts: list[Part] = []
    for source in [SourceConfig(shards=spec)] if isinstance(spec, str) else spec:
        chosen = _load_source(source, cache)
        parts.append(Part(len(shards), len(shards) + len(chosen), source.weight))
        shards += chosen
        _unused(chosen).say(source.shards)
    return Index(tuple(shards), tuple(parts))


def write_index(folder: Path) -> Path:
    """Scans every tar of a folder and writes its `index.json`. Raises UserError if a shard has any problem."""
    shards = [_scan_whole(path) for path in expand_shards(str(folder))]
    return save_index(shards, folder / INDEX_FILE)


def save_index(shards: Iterable[ShardIndex], path: Path) -> Path:
    """Writes an `index.json` of local shards, with the sizes of their pictures."""
    text = dump_index(add_picture_sizes(shard) for shard in shards)
    with atomic_file(path) as stage:
        stage.write_text(text)
    return path


def _load_source(source: SourceConfig, cache: Path | None) -> list[ShardIndex]:
    shards = _load_shards(source.shards, cache, sizes=source.filters)
    for shard in shards:
        if shard.samples == 0:
            raise UserError(f"shard {shard.url} is empty", "remove it, or pack it again with `ldm-vae shards`")
    if not source.filters:
        return shards
    kept = [shard.subset(_fitting(shard, source)) for shard in shards]
    kept = [shard for shard in kept if shard.samples > 0]
    before, after = (sum(shard.samples for shard in part) for part in (shards, kept))
    if after == 0:
        what = f"none of the {before} pictures in {source.shards} is left by minimum_side and maximum_aspect"
        raise UserError(what, "choose weaker filters")
    if after < before:
        logger.warning("%s: %d of %d pictures are left out by size or aspect", source.shards, before - after, before)
    return kept


def _unused(shards: Sequence[ShardIndex]) -> LeftOut:
    """The pictures that are no image of their own, and the samples that have none."""
    left_out = LeftOut()
    for shard in shards:
        there = {field: table[:, 0] >= 0 for field, table in shard.members.items()}
        pictures = np.zeros(shard.samples, dtype=bool)
        for field in EXTENSIONS:
            if field in there:
                _note(
                    left_out,
                    Kind("picture", "beside another of the same sample"),
                    shard,
                    field,
                    there[field] & pictures,
                )
                pictures |= there[field]
        for field in there:
            if "." in field and field.rpartition(".")[2] in EXTENSIONS:
                _note(left_out, Kind("picture", "in a field with a dot, such as a mask"), shard, field, there[field])
        _note(left_out, Kind("sample", "without a picture"), shard, "", ~pictures)
    return left_out


def _note(left_out: LeftOut, kind: Kind, shard: ShardIndex, field: str, chosen: NDArray[np.bool_]) -> None:
    if chosen.any():
        key = shard.key(int(np.argmax(chosen)))
        left_out.add(kind, f"{key}.{field}" if field else key, int(chosen.sum()))


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


def _fitting(shard: ShardIndex, source: SourceConfig) -> NDArray[np.bool_]:
    """(samples,) Which pass the filters. A picture of unknown size passes, so that reading it tells what is wrong."""
    assert shard.pictures is not None
    short, long = shard.pictures.min(axis=1), shard.pictures.max(axis=1)
    fitting = np.ones(shard.samples, dtype=bool)
    if source.minimum_side is not None:
        fitting &= short >= source.minimum_side
    if source.maximum_aspect is not None:
        fitting &= long <= source.maximum_aspect * short
    return fitting | (short <= 0)


def _load_shards(spec: str, cache: Path | None, *, sizes: bool) -> list[ShardIndex]:
    """The shards that `spec` names.

    sizes: whether the sizes of their pictures are needed.
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
    shards = [_scan_whole(url) for url in urls]
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
    scan: Callable[[str], ShardIndex] = (lambda path: add_picture_sizes(_scan_whole(path))) if sizes else _scan_whole
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


def _scan_whole(path: str) -> ShardIndex:
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
