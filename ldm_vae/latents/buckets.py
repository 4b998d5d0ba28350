"""Batches of latents of one size, for `DataLoader(dataset, batch_sampler=...)`.

In an epoch every sample comes once over all processes, and every process gets the same number of batches, so none
waits for another at the end. The batches of one step have one size on all processes, except in the last steps, which
hold what is left of each size: some of these batches are smaller. Only where samples are too few to be split (batches
of one, or hardly two samples of any size) do fewer samples than there are processes come twice, as DistributedSampler
repeats some.

The order is a function of seed and epoch. Tars come in random order, and samples are mixed over `MIXED_SHARDS` tars at
a time, so that reads stay near each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ldm_vae.errors import UserError
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.noise import rng

MIXED_SHARDS = 16  # tars whose samples are mixed: with fewer, samples of a batch lie near each other in the source


class BucketBatchSampler(Sampler[list[int]]):
    """Gives lists of at most `batch` items whose latents have one height and width: one list for each step."""

    def __init__(self, dataset: LatentDataset, batch: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        """Reads all records of the dataset.

        batch: items in a batch of one process.
        seed: decides the order.
        rank: number of this process.
        world: number of processes. All must give the same dataset, batch and seed.
        Raises UserError for numbers that make no sense, and where there are fewer samples than processes.
        """
        if batch < 1 or not 0 <= rank < world:
            raise UserError(f"batch={batch}, rank={rank}, world={world}", "give batch >= 1 and 0 <= rank < world")
        if len(dataset) < world:
            raise UserError(f"{len(dataset)} samples for {world} processes", "give more samples, or fewer processes")
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self._ends = dataset.shard_ends
        sizes, self._size_of = np.unique(dataset.sizes(), axis=0, return_inverse=True)
        self._size_of = self._size_of.reshape(-1)  # (samples,) number of its size
        self._counts = np.bincount(self._size_of, minlength=len(sizes))
        self._epoch, self._start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the order of an epoch, as DistributedSampler's does; call the dataset's `set_epoch`, too.

        start: batches of this process that are left out, because a run that continues has seen them.
        """
        if not 0 <= start <= self._steps:
            raise UserError(f"start={start}", f"an epoch has {self._steps} batches for each process")
        self._epoch, self._start = epoch, start

    def __len__(self) -> int:
        """Batches that this process still gets in the epoch."""
        return self._steps - self._start

    def __iter__(self) -> Iterator[list[int]]:
        for step, batches in enumerate(self._step_batches()):
            if step >= self._start:
                yield batches[self.rank].tolist()

    @property
    def _steps(self) -> int:
        whole, left = np.divmod(self._counts, self.batch * self.world)
        rest = int((-(-left // self.batch)).sum())  # batches of what is left
        return int(whole.sum()) + -(-rest // self.world)

    def _step_batches(self) -> Iterator[list[NDArray[np.int64]]]:
        """The batches of all processes, step after step."""
        waiting: list[list[int]] = [[] for _ in self._counts]
        full = self.batch * self.world
        last: list[NDArray[np.int64]] | None = None  # a step is held back, in case what is left has too few samples
        for item in self._order():
            bucket = waiting[self._size_of[item]]
            bucket.append(item)
            if len(bucket) == full:
                if last is not None:
                    yield last
                last = np.split(np.array(bucket), self.world)
                bucket.clear()
        rest = [part for bucket in waiting if bucket for part in _even_parts(np.array(bucket), self.batch)]
        lacking = -len(rest) % self.world
        if last is not None and sum(map(len, rest)) < len(rest) + lacking:
            rest, last = [*last, *rest], None
        if last is not None:
            yield last
        for _ in range(lacking):  # so that each process gets as many
            largest = max(range(len(rest)), key=lambda place: len(rest[place]))
            halves = np.array_split(rest[largest], 2) if len(rest[largest]) > 1 else [rest[largest]] * 2
            rest[largest : largest + 1] = halves
        for first in range(0, len(rest), self.world):
            yield rest[first : first + self.world]

    def _order(self) -> Iterator[int]:
        """All items: tars in random order, samples mixed over some of them."""
        generator = rng(self.seed, "buckets", self._epoch)
        starts = np.concatenate([[0], self._ends[:-1]])
        shards = generator.permutation(len(self._ends))
        for first in range(0, len(shards), MIXED_SHARDS):
            mixed = shards[first : first + MIXED_SHARDS]
            items = np.concatenate([np.arange(starts[shard], self._ends[shard]) for shard in mixed])
            yield from generator.permutation(items).tolist()


def _even_parts(items: NDArray[np.int64], largest: int) -> list[NDArray[np.int64]]:
    """The items in as few parts as hold at most `largest`, of sizes that differ by one at most."""
    return np.array_split(items, -(-len(items) // largest))
