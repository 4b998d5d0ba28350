"""Which samples a rank reads at which step, and what is drawn for them.

Sample number c of a rank stands at position c * world + rank, and worker c % workers reads it: with 64 lanes and
powers of two, every worker has lanes of its own. What a batch holds depends on neither, and nothing is split by shard,
so that any shards go with any ranks and workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ldm_vae.data.shards.index import Index
from ldm_vae.data.stream.order import WINDOW, Positions, SampleRef, refs_at, rest_of_window
from ldm_vae.noise import rng


class Order(Protocol):
    """Positions -> samples, and what is drawn for them."""

    def refs(self, positions: Positions) -> list[SampleRef]: ...
    def window(self, position: int, stride: int) -> Positions:
        """The positions from this one on that are worth reading together; stride: between those of one reader."""

    def slot(self, position: int) -> int: ...
    def generator(self, position: int) -> np.random.Generator | None:
        """For crop and flip; None for the centre and no flip."""

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> SampleRef | None:
        """What takes the place of a broken sample; None to leave it out."""


@dataclass(frozen=True)
class TrainingOrder:
    index: Index
    seed: int
    batch: int

    def refs(self, positions: Positions) -> list[SampleRef]:
        return refs_at(self.index, self.seed, positions)

    def window(self, position: int, stride: int) -> Positions:
        return rest_of_window(self.index, self.seed, position)

    def slot(self, position: int) -> int:
        return position % self.batch

    def generator(self, position: int) -> np.random.Generator:
        return rng(self.seed, "augment", *divmod(position, self.batch))

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> SampleRef:
        """Any sample of the same source."""
        first, count = self.index.range_of_part(broken.shard)
        number = first + int(rng(self.seed, "replacement", position, attempt).integers(count))
        return SampleRef(*self.index.locate(number), epoch=broken.epoch)


@dataclass(frozen=True)
class ValidationOrder:
    index: Index

    def refs(self, positions: Positions) -> list[SampleRef]:
        return [SampleRef(*self.index.locate(position), epoch=0) for position in positions.tolist()]

    def window(self, position: int, stride: int) -> Positions:
        return np.arange(position, min(position + WINDOW * stride, self.index.samples), stride, dtype=np.int64)

    def slot(self, position: int) -> int:
        return position

    def generator(self, position: int) -> None:
        return None

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> None:
        return None


@dataclass(frozen=True)
class Steps:
    """Which positions a rank reads at which step. stop: samples of this rank, None without end."""

    order: Order
    rank: int
    world: int
    per_step: int  # samples
    first: int  # step
    stop: int | None

    def __iter__(self) -> Iterator[Positions]:
        for step in itertools.count(self.first):
            start, end = step * self.per_step, (step + 1) * self.per_step
            numbers = np.arange(start, end if self.stop is None else min(end, self.stop), dtype=np.int64)
            if not len(numbers):
                return
            yield numbers * self.world + self.rank

    def of_worker(self, positions: Positions, worker: int, workers: int) -> Positions:
        """Those of any positions that this rank's worker reads."""
        numbers, remainder = np.divmod(positions - self.rank, self.world)
        return positions[(remainder == 0) & (numbers % workers == worker)]
