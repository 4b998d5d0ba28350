"""The order of training: which sample stands at each position. It follows from the seed and the index alone.

A position counts the samples that all ranks together have consumed since the start of training.

In each epoch the shards are put in a random order and read as one ring of samples, from a random place on. The ring is
cut into `SHARD_LANES` lanes of equal length (one sample more or less). Position p of an epoch belongs to lane
p % SHARD_LANES, and is sample number p // SHARD_LANES of that lane, after each window of `WINDOW_SAMPLES` samples of a
lane has been shuffled. So a batch draws from many places far apart, while whoever reads a lane reads shards from front
to back, a window at a time. The first window of lane l is l samples short, so that the lanes reach new windows one
after the other, not all at once. The next epoch follows without a gap.

Every epoch gives each sample once. Nothing depends on ranks, workers or batch size.

In a mixture each source has an order and epochs of its own; `data/stream/mixture.py` decides which source gives the
sample at a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ldm_vae.data.shards.index import Index
from ldm_vae.data.stream.mixture import Positions, from_source, to_source
from ldm_vae.noise import rng

SHARD_LANES = 64  # lanes read side by side; ranks times workers should divide it, so that each worker has as many
WINDOW_SAMPLES = 64  # samples of a lane that are shuffled among themselves


class SampleRef(NamedTuple):
    """One sample of an index, in one epoch.

    shard: number of the shard in the index.
    ordinal: number of the sample in the shard.
    epoch: how often the source of the sample was read through before.
    """

    shard: int
    ordinal: int
    epoch: int


def sample_refs(index: Index, seed: int, positions: Sequence[int] | Positions) -> list[SampleRef]:
    """The samples at these positions, in time O(n log n) for n positions after O(shards) for each epoch they touch."""
    sources, steps = to_source(index.weights, seed, np.asarray(positions, dtype=np.int64))
    refs = np.empty((len(steps), 3), dtype=np.int64)
    for source in np.unique(sources).tolist():
        epochs, places = np.divmod(steps, _samples(index, source))
        for epoch in np.unique(epochs[sources == source]).tolist():
            chosen = (sources == source) & (epochs == epoch)
            refs[chosen] = _plan(index, source, seed, epoch).refs(places[chosen])
    return [SampleRef(*row) for row in refs.tolist()]


def rest_of_window(index: Index, seed: int, position: int) -> Positions:
    """The positions from `position` on whose samples lie in the same window of the same lane of the same source."""
    sources, steps = to_source(index.weights, seed, np.array([position]))
    source, samples = int(sources[0]), _samples(index, int(sources[0]))
    epoch, place = divmod(int(steps[0]), samples)
    lanes = min(SHARD_LANES, samples)
    lane, item = place % lanes, place // lanes
    _, end = _window_ends((item + lane) // WINDOW_SAMPLES, lane, int(_lane_lengths(samples)[lane]))
    rest = epoch * samples + np.arange(item, end, dtype=np.int64) * lanes + lane
    return from_source(index.weights, seed, source, rest)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The order of one epoch of one source.

    first: number of the source's first shard in the index.
    counts: samples in each of its shards.
    order: its shards in the order in which they lie on the ring.
    ends: where each of the shards in `order` ends on the ring, in samples.
    starts: where each lane starts on the ring, in samples.
    lengths: samples in each lane.
    """

    seed: int
    source: int
    epoch: int
    first: int
    counts: Positions
    order: Positions
    ends: Positions
    starts: Positions
    lengths: Positions

    def refs(self, places: Positions) -> Positions:
        """(n,) places in the epoch -> (n, 3): shard, ordinal and epoch of the sample at each."""
        lane, item = places % len(self.lengths), places // len(self.lengths)
        window = (item + lane) // WINDOW_SAMPLES
        group = lane * (window.max(initial=0) + 1) + window
        by_group = np.argsort(group, kind="stable")
        for chosen in np.split(by_group, np.flatnonzero(np.diff(group[by_group])) + 1):
            if len(chosen):
                item[chosen] = self._shuffled(int(lane[chosen[0]]), int(window[chosen[0]]), item[chosen])
        ring = (self.starts[lane] + item) % self.ends[-1]
        nth = np.searchsorted(self.ends, ring, side="right")
        shard = self.order[nth]
        ordinal = ring - (self.ends[nth] - self.counts[shard])
        return np.stack([shard + self.first, ordinal, np.full_like(shard, self.epoch)], axis=1)

    def _shuffled(self, lane: int, window: int, items: Positions) -> Positions:
        """The items that the shuffle of a window puts at the places of `items`."""
        begin, end = _window_ends(window, lane, int(self.lengths[lane]))
        return begin + _permutation(self.seed, self.source, self.epoch, lane, window, end - begin)[items - begin]


@lru_cache(maxsize=8)  # the current epoch, and the next one while a window or a batch reaches into it
def _plan(index: Index, source: int, seed: int, epoch: int) -> _Plan:
    part = index.parts[source]
    counts = index.counts[part.first : part.stop]
    samples = int(counts.sum())
    order = rng(seed, "shards", source, epoch).permutation(len(counts))
    lengths = _lane_lengths(samples)
    # Neighbouring lanes lie apart on the ring, so that small batches are mixed, too.
    stretches = rng(seed, "lanes", source, epoch).permutation(len(lengths))
    starts = np.empty_like(lengths)
    starts[stretches] = np.cumsum(lengths[stretches]) - lengths[stretches]
    starts += rng(seed, "ring", source, epoch).integers(samples)  # windows cut shards elsewhere in each epoch
    return _Plan(seed, source, epoch, part.first, counts, order, np.cumsum(counts[order]), starts, lengths)


@lru_cache(maxsize=8 * SHARD_LANES)
def _permutation(seed: int, source: int, epoch: int, lane: int, window: int, size: int) -> Positions:
    return rng(seed, "window", source, epoch, lane, window).permutation(size)


def _samples(index: Index, source: int) -> int:
    part = index.parts[source]
    return int(index.counts[part.first : part.stop].sum())


def _window_ends(window: int, lane: int, length: int) -> tuple[int, int]:
    """(begin, end): the items of a lane of `length` samples that make up one of its windows."""
    return max(window * WINDOW_SAMPLES - lane, 0), min((window + 1) * WINDOW_SAMPLES - lane, length)


def _lane_lengths(samples: int) -> Positions:
    lanes = min(SHARD_LANES, samples)
    return samples // lanes + (np.arange(lanes) < samples % lanes)
