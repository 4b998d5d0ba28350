"""Which samples a rank reads at which step, and the random numbers of each.

Sample number c of a rank stands at position c * world + rank, and worker c % workers of that rank reads it. With 64
lanes, and powers of two of ranks and workers, every worker has lanes of its own. The global batch is the same for any
number of ranks and workers. Shards are not shared out to ranks, so their number need not fit that of the ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ldm_vae.data.shards.index import Index
from ldm_vae.data.stream.mixture import Positions
from ldm_vae.data.stream.order import WINDOW_SAMPLES, SampleRef, rest_of_window, sample_refs
from ldm_vae.noise import rng


class Order(Protocol):
    """An order of samples: which stands at a position, and the random numbers for it."""

    def refs(self, positions: Positions) -> list[SampleRef]: ...
    def window(self, position: int, stride: int) -> Positions:
        """The positions from `position` on that are worth reading together; a reader takes every `stride`-th."""

    def slot(self, position: int) -> int: ...
    def generator(self, position: int) -> np.random.Generator | None:
        """The random numbers for crop and flip; None means the centre and no flip."""

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> SampleRef | None:
        """The sample that replaces a broken one; None to leave it out."""


@dataclass(frozen=True)
class TrainingOrder:
    index: Index
    seed: int
    batch: int

    def refs(self, positions: Positions) -> list[SampleRef]:
        return sample_refs(self.index, self.seed, positions)

    def window(self, position: int, stride: int) -> Positions:
        return rest_of_window(self.index, self.seed, position)

    def slot(self, position: int) -> int:
        return position % self.batch

    def generator(self, position: int) -> np.random.Generator:
        return rng(self.seed, "augment", *divmod(position, self.batch))

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> SampleRef:
        """A random sample of the same source."""
        first, count = self.index.range_of_part(broken.shard)
        number = first + int(rng(self.seed, "replacement", position, attempt).integers(count))
        return SampleRef(*self.index.locate(number), epoch=broken.epoch)


@dataclass(frozen=True)
class ValidationOrder:
    index: Index

    def refs(self, positions: Positions) -> list[SampleRef]:
        return [SampleRef(*self.index.locate(position), epoch=0) for position in positions.tolist()]

    def window(self, position: int, stride: int) -> Positions:
        return np.arange(position, min(position + WINDOW_SAMPLES * stride, self.index.samples), stride, dtype=np.int64)

    def slot(self, position: int) -> int:
        return position

    def generator(self, position: int) -> None:
        return None

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> None:
        return None


@dataclass(frozen=True)
class RankSteps:
    """The positions that one rank reads, step by step.

    order: which sample stands at a position.
    rank: number of this process.
    world: number of processes.
    per_step: samples of this rank in one step.
    first: number of the first step.
    stop: samples of this rank in total; None for no end.
    """

    order: Order
    rank: int
    world: int
    per_step: int
    first: int
    stop: int | None

    def __iter__(self) -> Iterator[Positions]:
        for step in itertools.count(self.first):
            start, end = step * self.per_step, (step + 1) * self.per_step
            numbers = np.arange(start, end if self.stop is None else min(end, self.stop), dtype=np.int64)
            if not len(numbers):
                return
            yield numbers * self.world + self.rank

    def of_worker(self, positions: Positions, worker: int, workers: int) -> Positions:
        """The ones among `positions` that worker number `worker` of this rank reads."""
        numbers, remainder = np.divmod(positions - self.rank, self.world)
        return positions[(remainder == 0) & (numbers % workers == worker)]
