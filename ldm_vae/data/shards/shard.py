"""The index of one shard: where every member of every sample lies, and how `index.json` stores that.

    {"format": "ldm_vae.index", "version": 1, "shards": [
        {"name": "000000.tar", "bytes": 8960000, "samples": 200, "keys": ["n01440764", ...],
         "members": {"jpg": {"offset": [512, ...], "size": [27960, ...]}, "cls": ...},
         "pictures": {"width": [256, ...], "height": [384, ...]}}]}

The key of a sample is the name of its members up to a dot, with folders, and a field is what follows the dot, in lower
case (`names.py` says which dot; what stands in an index that exists is taken as it is). `offset` and `size` tell where
the content of a member lies, in bytes; offset is -1 if a sample lacks the field. `width` and `height` are those of the
sample's picture as stored, 0 if its header did not tell. `pictures` may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.shards.tar import TAR_BLOCK
from ldm_vae.data.shards.urls import name_of, within
from ldm_vae.documents import DamagedFile, parse_object
from ldm_vae.errors import UserError, in_one_line

INDEX_FILE = "index.json"
MAX_SAMPLE = 2**30  # bytes of one sample; more count as an attack
INDEX_FORMAT, INDEX_VERSION = "ldm_vae.index", 1
INDEX_REMEDY = "make it with `ldm-vae shards`, or `ldm-vae check --write-index` where the shards are local"

Fields = dict[str, bytes]  # field -> content
Samples = Mapping[str, Mapping[str, tuple[int, int]]]  # key -> field -> offset, size


class BrokenSample(Exception):
    """A sample that cannot be read.

    reason: why, in one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """What is in one shard. A group of pictures in a folder counts as a shard, too.

    url: path or URL of the tar, or of the folder of images.
    size: its bytes.
    names: all keys end to end, as UTF-8.
    ends: (samples,) where each key ends in `names`.
    members: field -> (samples, 2) int64, offset and size of its content in bytes; offset -1 if a sample lacks it.
    pictures: (samples, 2) int64, width and height as stored, 0 if unknown; None if nobody looked.
    files: paths of the files in a folder of images, which `members` then refers to by number instead of by offset;
        None for a tar.
    """

    url: str
    size: int
    names: bytes
    ends: NDArray[np.int64]
    members: Mapping[str, NDArray[np.int64]]
    pictures: NDArray[np.int64] | None = None
    files: tuple[str, ...] | None = None

    @property
    def samples(self) -> int:
        return len(self.ends)

    @property
    def name(self) -> str:
        """The name of the tar, or of the folder of images."""
        return name_of(self.url)

    def key(self, ordinal: int) -> str:
        start = int(self.ends[ordinal - 1]) if ordinal else 0
        return self.names[start : int(self.ends[ordinal])].decode("utf-8", "surrogateescape")

    def fields(self, ordinal: int) -> dict[str, tuple[int, int]]:
        """The fields of one sample: name -> (offset, size)."""
        places = ((field, table[ordinal]) for field, table in self.members.items())
        return {field: (int(offset), int(size)) for field, (offset, size) in places if offset >= 0}

    def picture(self, ordinal: int) -> str | None:
        """The field that holds the sample's picture; if there are several, the first in EXTENSIONS."""
        return next((f for f in EXTENSIONS if f in self.members and self.members[f][ordinal, 0] >= 0), None)

    def place(self, ordinal: int, field: str) -> tuple[str, int, int]:
        """(URL, offset, size) of the content of a field."""
        offset, size = self.members[field][ordinal].tolist()
        return (self.url, offset, size) if self.files is None else (f"{self.url}/{self.files[offset]}", 0, size)

    def subset(self, chosen: NDArray[np.bool_]) -> ShardIndex:
        """The same shard with only the samples for which `chosen` (samples,) is true."""
        keys = [self.key(int(ordinal)) for ordinal in np.flatnonzero(chosen)]
        tables = {field: table[chosen] for field, table in self.members.items()}
        pictures = None if self.pictures is None else self.pictures[chosen]
        kept = {field: table for field, table in tables.items() if (table[:, 0] >= 0).any()}
        return ShardIndex(self.url, self.size, *_pack_names(keys), kept, pictures, self.files)


def pack_shard(url: str, size: int, samples: Samples, files: tuple[str, ...] | None = None) -> ShardIndex:
    """The index of a shard with these samples."""
    fields = sorted({field for sample in samples.values() for field in sample})
    places = {field: [sample.get(field, (-1, 0)) for sample in samples.values()] for field in fields}
    tables = {field: np.array(rows, dtype=np.int64).reshape(-1, 2) for field, rows in places.items()}
    return ShardIndex(url, size, *_pack_names(samples), tables, files=files)


def dump_index(shards: Iterable[ShardIndex]) -> str:
    """The content of `index.json`, which `parse_index` reads."""
    entries = [shard_to_json(shard) for shard in sorted(shards, key=lambda shard: shard.url)]
    return json.dumps({"format": INDEX_FORMAT, "version": INDEX_VERSION, "shards": entries}, separators=(",", ":"))


def parse_index(data: bytes, index: str, folder: str) -> dict[str, ShardIndex]:
    """Parses the bytes of an `index.json`: name of a shard -> its index. Everything in it is checked.

    index: where it was read, for messages.
    folder: where its shards lie.
    Raises UserError if it is not an index.
    """
    try:
        content = parse_object(data, index, INDEX_REMEDY, names=True)
        if content["format"] != INDEX_FORMAT or content["version"] != INDEX_VERSION:
            raise ValueError(f"format {content['format']!r} version {content['version']!r}")
        return {entry["name"]: shard_from_json(entry, folder) for entry in content["shards"]}
    except DamagedFile as error:
        raise UserError(f"{index} is no index of shards ({error.what})", INDEX_REMEDY) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = in_one_line(error, longest=200)
        raise UserError(f"{index} is no index of shards ({reason})", INDEX_REMEDY) from error


def shard_to_json(shard: ShardIndex) -> dict[str, Any]:
    """The entry of a shard in `index.json`."""
    entry: dict[str, Any] = {
        "name": shard.name,
        "bytes": shard.size,
        "samples": shard.samples,
        "keys": [shard.key(ordinal) for ordinal in range(shard.samples)],
        "members": {field: _columns(table, "offset", "size") for field, table in shard.members.items()},
    }
    if shard.pictures is not None:
        entry["pictures"] = _columns(shard.pictures, "width", "height")
    return entry


def shard_from_json(entry: Mapping[str, Any], folder: str) -> ShardIndex:
    """The shard that an entry of `index.json` describes.

    Raises ValueError, KeyError, TypeError, AttributeError or OverflowError if it is not such an entry.
    """
    name, size, keys = entry["name"], int(entry["bytes"]), entry["keys"]
    if not name or Path(name).name != name or "\0" in name:
        raise ValueError(f"shard name {name!r}")
    if entry["samples"] != len(keys):
        raise ValueError(f"samples of {name}")
    tables = {
        field: _parse_columns(columns, "offset", "size", len(keys)) for field, columns in entry["members"].items()
    }
    for table in tables.values():
        offset, length = table.T  # compared without a sum, which may overflow
        inside = (offset >= TAR_BLOCK) & (length >= 0) & (offset <= size) & (length <= size - offset)
        if not np.all(inside | (table[:, 0] == -1)):
            raise ValueError(f"members of {name}")
    pictures = _parse_columns(entry["pictures"], "width", "height", len(keys)) if "pictures" in entry else None
    if pictures is not None and (pictures < 0).any():
        raise ValueError(f"pictures of {name}")
    return ShardIndex(within(folder, name), size, *_pack_names(keys), tables, pictures)


def _columns(table: NDArray[np.int64], first: str, second: str) -> dict[str, list[int]]:
    return {first: table[:, 0].tolist(), second: table[:, 1].tolist()}


def _parse_columns(columns: Mapping[str, Sequence[int]], first: str, second: str, rows: int) -> NDArray[np.int64]:
    found = [np.array(columns[name]) for name in (first, second)]
    if any(column.size and column.dtype != np.int64 for column in found):
        raise ValueError(f"{first} or {second} is no list of integers")
    table = np.stack(found, axis=1).astype(np.int64)
    if table.shape != (rows, 2):
        raise ValueError(f"{len(table)} rows for {rows} samples")
    return table


def _pack_names(keys: Iterable[str]) -> tuple[bytes, NDArray[np.int64]]:
    names = [key.encode("utf-8", "surrogateescape") for key in keys]
    return b"".join(names), np.cumsum([len(name) for name in names], dtype=np.int64)


def parse_label(data: bytes) -> int:
    """The class in the content of the field `cls`. Raises BrokenSample if it is no integer of 64 bits."""
    try:
        label = int(data[:32])
    except ValueError:
        raise BrokenSample(f"{LABEL} is no integer: {data[:32]!r}") from None
    if len(data) > 32 or not -(2**63) <= label < 2**63:
        raise BrokenSample(f"{LABEL} is no integer of 64 bits: {data[:32]!r}")
    return label
