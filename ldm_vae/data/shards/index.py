"""The index of a data set: what is in all shards of its sources (`describe.py`), and how these are mixed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from ldm_vae.atomic import atomic_file
from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.describe import describe_shards, scan_whole
from ldm_vae.data.shards.left_out import Kind, LeftOut
from ldm_vae.data.shards.scan import add_picture_sizes
from ldm_vae.data.shards.shard import INDEX_FILE, ShardIndex, dump_index
from ldm_vae.data.shards.storage import expand_shards
from ldm_vae.errors import UserError
from ldm_vae.passwords import keep_aside
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
    shards = [scan_whole(path) for path in expand_shards(str(folder))]
    return save_index(shards, folder / INDEX_FILE)


def save_index(shards: Iterable[ShardIndex], path: Path) -> Path:
    """Writes an `index.json` of local shards, with the sizes of their pictures."""
    text = dump_index(add_picture_sizes(shard) for shard in shards)
    with atomic_file(path) as stage:
        stage.write_text(text)
    return path


def _load_source(source: SourceConfig, cache: Path | None) -> list[ShardIndex]:
    shards = describe_shards(source.shards, cache, sizes=source.filters)
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
