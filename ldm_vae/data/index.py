"""What is in the shards: the place of every member of every sample, from `index.json` or from the tars' headers.

`index.json` lies beside the shards:

    {"format": "ldm_vae.index", "version": 1, "shards": [
        {"name": "000000.tar", "bytes": 8960000, "samples": 200, "keys": ["n01440764", ...],
         "members": {"jpg": {"offset": [512, ...], "size": [27960, ...]}, "cls": ...}}]}

offset and size are those of the member's content in bytes, offset -1 where a sample lacks the field. A field is what
follows the last dot of a name, in lower case; the key is what stands before, with its folders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_vae.atomic import atomic_file
from ldm_vae.data.source import Missing, Source, Unreachable, expand_shards, is_remote, read_whole
from ldm_vae.data.tar import BLOCK, BrokenTar, members
from ldm_vae.errors import UserError

NAME = "index.json"
FORMAT, VERSION = "ldm_vae.index", 1
REMEDY = "make it with `ldm-vae shards`, or `ldm-vae check --write-index` where the shards are local"


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """url: path or URL of the tar.   size: its bytes.   names, ends: the keys, UTF-8, end to end, and where each ends.
    members: field -> (samples, 2) int64, offset and size of the content in bytes; offset -1 where there is none."""

    url: str
    size: int
    names: bytes
    ends: NDArray[np.int64]
    members: Mapping[str, NDArray[np.int64]]

    @property
    def samples(self) -> int:
        return len(self.ends)

    def key(self, ordinal: int) -> str:
        start = int(self.ends[ordinal - 1]) if ordinal else 0
        return self.names[start : int(self.ends[ordinal])].decode("utf-8", "surrogateescape")

    def fields(self, ordinal: int) -> dict[str, tuple[int, int]]:
        """Field -> (offset, size) of one sample."""
        places = ((field, table[ordinal]) for field, table in self.members.items())
        return {field: (int(offset), int(size)) for field, (offset, size) in places if offset >= 0}


@dataclass(frozen=True, eq=False)
class Index:
    """shards: sorted by URL, each with at least one sample."""

    shards: tuple[ShardIndex, ...]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each shard."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def samples(self) -> int:
        return int(self.counts.sum())

    def locate(self, number: int) -> tuple[int, int]:
        """Sample `number` of all, in the order of the index -> (shard, ordinal)."""
        ends = np.cumsum(self.counts)
        shard = int(np.searchsorted(ends, number, side="right"))
        return shard, int(number - (ends[shard] - self.counts[shard]))

    @cached_property
    def fields(self) -> dict[str, int]:
        """Field -> number of samples that have it."""
        totals: dict[str, int] = {}
        for shard in self.shards:
            for field, table in shard.members.items():
                totals[field] = totals.get(field, 0) + int((table[:, 0] >= 0).sum())
        return totals

    @cached_property
    def fingerprint(self) -> str:
        """Tells whether two runs see the same data in the same order, wherever the shards lie."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{Path(shard.url).name}\n{shard.size}\n{shard.samples}\n".encode() + shard.names)
        return digest.hexdigest()


def split_name(name: str) -> tuple[str, str]:
    """Member name -> (key, field): `a/b.v1.0.JPG` -> (`a/b.v1.0`, `jpg`); without a dot the field is empty.

    webdataset cuts at the first dot, so that `b.v1.0.jpg` becomes key `b` with field `v1.0.jpg`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".") if "." in base[1:] else (base, "", "")
    return folder + slash + stem, extension.lower()


@dataclass(frozen=True)
class Scan:
    """A shard as its headers tell it. problems: (member or "", reason) of what training would refuse."""

    shard: ShardIndex
    problems: list[tuple[str, str]]


def scan_shard(url: str) -> Scan:
    """Reads the headers of one tar, a few kB a member. Raises Missing or Unreachable."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    problems: list[tuple[str, str]] = []
    previous = None
    with closing(Source()) as source:
        size = source.size(url)
        try:
            for member in members(url, source):
                key, field = split_name(member.name)
                if member.problem is not None:
                    problems.append((member.name, member.problem))
                    continue
                if key in samples and key != previous:
                    problems.append((member.name, "its key appeared before, with others in between"))
                if field in samples.setdefault(key, {}):
                    problems.append((member.name, "the name appears twice"))
                    continue
                samples[key][field] = (member.offset, member.size)
                previous = key
        except BrokenTar as error:
            problems.append(("", str(error)))
    return Scan(_pack(url, size, samples), problems)


def load_index(spec: str, *, cache: Path | None = None) -> Index:
    """The index of the shards that `spec` names (see `expand_shards`): `index.json`, else a scan of local shards.

    cache: a folder that keeps scans; a shard that has changed since is scanned again.
    Raises UserError for missing, empty and broken shards, and for remote shards without an index.
    """
    shards: list[ShardIndex] = []
    by_folder: dict[str, list[str]] = {}
    for url in expand_shards(spec):
        if is_remote(url):  # a remote folder means whatever its index names
            folder, name = url.rsplit("/", 1) if url.endswith(".tar") else (url, "")
        else:
            folder, name = str(Path(url).parent), Path(url).name
        by_folder.setdefault(folder, []).append(name)
    for folder, names in by_folder.items():
        if is_remote(folder):
            shards += _remote_shards(folder, names)
        else:
            whole = Path(spec.removeprefix("file://")).is_dir()
            shards += _local_shards(folder, names, cache, whole=whole)
    for shard in shards:
        if shard.samples == 0:
            raise UserError(f"shard {shard.url} is empty", "remove it, or pack it again with `ldm-vae shards`")
    return Index(tuple(sorted(shards, key=lambda shard: shard.url)))


def write_index(folder: Path) -> Path:
    """Scans every tar of a folder and writes its `index.json`. Raises UserError for a shard with any problem."""
    shards = [_scan_whole(path) for path in expand_shards(str(folder))]
    return save_index(shards, folder / NAME)


def save_index(shards: Iterable[ShardIndex], path: Path) -> Path:
    entries = [_to_json(shard) for shard in sorted(shards, key=lambda shard: shard.url)]
    with atomic_file(path) as stage:
        stage.write_text(json.dumps({"format": FORMAT, "version": VERSION, "shards": entries}, separators=(",", ":")))
    return path


def _remote_shards(folder: str, names: list[str]) -> list[ShardIndex]:
    url = f"{folder}/{NAME}"
    try:
        known = _parse(read_whole(url), url, folder)
    except Missing as error:
        raise UserError(f"{folder} has no {NAME} ({error})", f"remote shards need one; {REMEDY}") from error
    except Unreachable as error:
        raise UserError(str(error), "check the network and the address, then run it again") from error
    return list(known.values()) if names == [""] else _select(known, names, url)


def _local_shards(folder: str, names: list[str], cache: Path | None, *, whole: bool) -> list[ShardIndex]:
    path = Path(folder) / NAME
    if path.is_file():
        known = _parse(path.read_bytes(), str(path), folder)
        chosen = _select(known, names, str(path))
        if whole and len(known) > len(chosen):
            gone = next(name for name in known if name not in names)
            raise UserError(f"{path} lists {gone}, which is not there", "restore the shard, or " + REMEDY)
        for shard in chosen:
            size = Path(shard.url).stat().st_size
            if size != shard.size:
                what = f"shard {shard.url} has {size} bytes, its index says {shard.size}"
                raise UserError(what, "it was cut or changed; `ldm-vae check` shows what is left")
        return chosen
    paths = [f"{folder}/{name}" for name in names]
    if cache is None:
        return [_scan_whole(path) for path in paths]
    return _scan_cached(folder, paths, cache)


def _scan_cached(folder: str, paths: list[str], cache: Path) -> list[ShardIndex]:
    stored = cache / f"{hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]}.json"
    known: dict[str, Any] = {}
    if stored.is_file():
        known = json.loads(stored.read_text())
    shards, changed = [], False
    for path in paths:
        status = Path(path).stat()
        stamp = [status.st_size, status.st_mtime_ns]
        name = Path(path).name
        if known.get(name, {}).get("stamp") != stamp:
            known[name] = {"stamp": stamp, "shard": _to_json(_scan_whole(path))}
            changed = True
        shards.append(_from_json(known[name]["shard"], folder))
    if changed:
        with atomic_file(stored) as stage:
            stage.write_text(json.dumps(known, separators=(",", ":")))
    return shards


def _scan_whole(path: str) -> ShardIndex:
    try:
        scan = scan_shard(path)
    except Missing as error:
        raise UserError(f"shard {path} cannot be read ({error})", "check the path and its rights") from error
    if scan.problems:
        member, reason = scan.problems[0]
        more = f" and {len(scan.problems) - 1} more" if len(scan.problems) > 1 else ""
        what = f"shard {path}: {member + ': ' if member else ''}{reason}{more}"
        raise UserError(what, "`ldm-vae check` lists all, and with --write-index keeps what is whole")
    return scan.shard


def _select(known: Mapping[str, ShardIndex], names: list[str], index: str) -> list[ShardIndex]:
    for name in names:
        if name not in known:
            raise UserError(f"{index} does not list {name}", "it is older than the shards; " + REMEDY)
    return [known[name] for name in names]


def _pack(url: str, size: int, samples: Mapping[str, Mapping[str, tuple[int, int]]]) -> ShardIndex:
    keys = [key.encode("utf-8", "surrogateescape") for key in samples]
    fields = sorted({field for sample in samples.values() for field in sample})
    places = {field: [sample.get(field, (-1, 0)) for sample in samples.values()] for field in fields}
    tables = {field: np.array(rows, dtype=np.int64).reshape(-1, 2) for field, rows in places.items()}
    return ShardIndex(url, size, b"".join(keys), np.cumsum([len(key) for key in keys], dtype=np.int64), tables)


def _to_json(shard: ShardIndex) -> dict[str, Any]:
    tables = shard.members.items()
    return {
        "name": Path(shard.url).name,
        "bytes": shard.size,
        "samples": shard.samples,
        "keys": [shard.key(ordinal) for ordinal in range(shard.samples)],
        "members": {field: {"offset": t[:, 0].tolist(), "size": t[:, 1].tolist()} for field, t in tables},
    }


def _parse(data: bytes, index: str, folder: str) -> dict[str, ShardIndex]:
    """Bytes of `index.json` -> name of shard -> its index. Nothing in it is believed unchecked."""
    try:
        content = json.loads(data)
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"format {content['format']!r} version {content['version']!r}")
        return {entry["name"]: _from_json(entry, folder) for entry in content["shards"]}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{index} is no index of shards ({reason})", REMEDY) from error


def _from_json(entry: Mapping[str, Any], folder: str) -> ShardIndex:
    name, size, keys = entry["name"], int(entry["bytes"]), entry["keys"]
    if not name or Path(name).name != name:
        raise ValueError(f"shard name {name!r}")
    names = [key.encode("utf-8", "surrogateescape") for key in keys]
    tables = {}
    for field, columns in entry["members"].items():
        table = np.stack([np.array(columns["offset"], dtype=np.int64), np.array(columns["size"], dtype=np.int64)], 1)
        inside = (table[:, 0] >= BLOCK) & (table[:, 1] >= 0) & (table.sum(1) <= size)
        if len(table) != len(names) or not np.all(inside | (table[:, 0] == -1)):
            raise ValueError(f"members of {name}")
        tables[field] = table
    if entry["samples"] != len(names):
        raise ValueError(f"samples of {name}")
    ends = np.cumsum([len(key) for key in names], dtype=np.int64)
    return ShardIndex(f"{folder}/{name}", size, b"".join(names), ends, tables)
