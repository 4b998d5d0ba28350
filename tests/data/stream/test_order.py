"""The order against a plain version of it, and what it promises."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_vae.data.shards.index import Index, Part
from ldm_vae.data.shards.shard import ShardIndex
from ldm_vae.data.stream.order import SHARD_LANES, WINDOW_SAMPLES, SampleRef, rest_of_window, sample_refs
from ldm_vae.noise import rng


def index_of(counts: list[int]) -> Index:
    """An index of shards that nobody reads."""
    ends = [np.zeros(count, dtype=np.int64) for count in counts]
    shards = tuple(ShardIndex(f"{i}.tar", 0, b"", end, {}) for i, end in enumerate(ends))
    return Index(shards, (Part(0, len(shards), 1.0),))


def plain_epoch(counts: list[int], seed: int, epoch: int) -> list[SampleRef]:
    """The definition at the head of order.py, with lists."""
    order = rng(seed, "shards", 0, epoch).permutation(len(counts))
    ring = [SampleRef(int(shard), ordinal, epoch) for shard in order for ordinal in range(counts[shard])]
    total = len(ring)
    lanes = min(SHARD_LANES, total)
    lengths = [total // lanes + (lane < total % lanes) for lane in range(lanes)]
    at = int(rng(seed, "ring", 0, epoch).integers(total))
    queues: list[list[SampleRef]] = [[] for _ in range(lanes)]
    for lane in rng(seed, "lanes", 0, epoch).permutation(lanes):
        stretch = [ring[(at + i) % total] for i in range(lengths[lane])]
        at += lengths[lane]
        first = WINDOW_SAMPLES - int(lane)
        bounds = [0, *range(first, len(stretch), WINDOW_SAMPLES), len(stretch)]
        for window, (begin, end) in enumerate(itertools.pairwise(bounds)):
            shuffled = rng(seed, "window", 0, epoch, int(lane), window).permutation(end - begin)
            queues[lane] += [stretch[begin:end][i] for i in shuffled]
    return [queues[p % lanes][p // lanes] for p in range(total)]


counts_of_shards = st.lists(st.integers(1, 400), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(counts_of_shards, st.integers(0, 2**63), st.integers(0, 3), st.data())
def test_any_stretch_equals_the_plain_version(counts: list[int], seed: int, epoch: int, data: st.DataObject) -> None:
    index = index_of(counts)
    plain = plain_epoch(counts, seed, epoch) + plain_epoch(counts, seed, epoch + 1)
    start = data.draw(st.integers(0, index.samples - 1))
    first = epoch * index.samples + start
    count = data.draw(st.integers(0, index.samples))
    assert sample_refs(index, seed, range(first, first + count)) == plain[start : start + count]


@settings(max_examples=40, deadline=None)
@given(counts_of_shards, st.integers(0, 1000))
def test_every_epoch_gives_every_sample_once(counts: list[int], seed: int) -> None:
    index = index_of(counts)
    refs = sample_refs(index, seed, range(2 * index.samples))
    everything = {(shard, ordinal) for shard, count in enumerate(counts) for ordinal in range(count)}
    for epoch in range(2):
        part = refs[epoch * index.samples : (epoch + 1) * index.samples]
        assert {ref.epoch for ref in part} == {epoch}
        assert Counter((ref.shard, ref.ordinal) for ref in part) == Counter(everything)


def test_any_positions_in_any_order() -> None:
    index = index_of([30, 500, 7])
    refs = sample_refs(index, 1, range(2000))
    chosen = np.random.default_rng(0).integers(0, 2000, size=300)
    assert sample_refs(index, 1, chosen) == [refs[i] for i in chosen]


@settings(max_examples=60, deadline=None)
@given(counts_of_shards, st.integers(0, 5000))
def test_rest_of_window_is_one_lane_and_one_stretch_of_the_ring(counts: list[int], position: int) -> None:
    index = index_of(counts)
    rest = rest_of_window(index, 0, position)
    assert rest[0] == position and len(rest) <= WINDOW_SAMPLES
    lanes = min(SHARD_LANES, index.samples)
    assert len(set((rest % index.samples) % lanes)) == 1 and len(set(rest // index.samples)) == 1
    refs = sample_refs(index, 0, rest)
    order = rng(0, "shards", 0, refs[0].epoch).permutation(len(counts)).tolist()
    begins = np.cumsum([0, *(counts[s] for s in order)])
    on_ring = sorted(int(begins[order.index(ref.shard)]) + ref.ordinal for ref in refs)
    gaps = [b - a for a, b in itertools.pairwise(on_ring)]
    assert sum(gap > WINDOW_SAMPLES for gap in gaps) <= 1  # one stretch of WINDOW_SAMPLES, or two around the ring's end


def test_epochs_and_seeds_differ_and_repeat() -> None:
    index = index_of([100] * 12)
    first, second = (sample_refs(index, 0, range(epoch * 1200, (epoch + 1) * 1200)) for epoch in range(2))
    strip = [[(ref.shard, ref.ordinal) for ref in part] for part in (first, second, sample_refs(index, 1, range(1200)))]
    for a, b in ((0, 1), (0, 2)):
        # Two random orders of n have one place in common on average; 12 is improbable (Poisson, 1e-10).
        assert sum(x == y for x, y in zip(strip[a], strip[b], strict=True)) < 12
    assert sample_refs(index, 0, range(1200)) == first


def test_one_shard_is_shuffled_anew_each_epoch() -> None:
    """With a single shard there is no order of shards to change: windows and their places must."""
    index = index_of([64 * 64])
    first, second = (
        [ref.ordinal for ref in sample_refs(index, 0, range(epoch * 4096, (epoch + 1) * 4096))] for epoch in range(2)
    )
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 12


@pytest.mark.parametrize("batch", [8, 64, 256])
def test_samples_of_a_batch_come_from_far_apart(batch: int) -> None:
    """The distance in the shards between neighbours in training: a uniform shuffle of n has mean n/3."""
    index = index_of([1000] * 40)
    total = index.samples
    places = np.array([ref.shard * 1000 + ref.ordinal for ref in sample_refs(index, 0, range(total))])
    distance = np.abs(np.diff(places))
    assert distance.mean() > 0.9 * total / 3
    batches = places[: total // batch * batch].reshape(-1, batch)
    shards_in_batch = [len(set((row // 1000).tolist())) for row in batches]
    uniform = 40 * (1 - (1 - 1 / 40) ** batch)  # expected number of different shards for a uniform draw
    assert np.mean(shards_in_batch) > 0.9 * uniform


def test_far_positions_cost_no_more_than_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming at the 10^6th epoch shuffles the windows at hand, none before."""
    import ldm_vae.data.stream.order as order

    drawn: list[tuple[int, ...]] = []

    def watched_rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
        drawn.append(numbers)
        return rng(seed, purpose, *numbers)

    monkeypatch.setattr(order, "rng", watched_rng)
    sample_refs(index_of([100] * 100), 5, range(10**10, 10**10 + 64))
    assert len(drawn) <= 2 * (3 + SHARD_LANES)  # three for each epoch touched, one for each window


def test_lanes_come_to_new_windows_one_after_the_other() -> None:
    """So that reading ahead is spread evenly: in each row of SHARD_LANES positions, one lane starts a window."""
    index = index_of([SHARD_LANES * 1000])
    for row in (1, 2, 70, 500):
        rest = [len(rest_of_window(index, 0, row * SHARD_LANES + lane)) for lane in range(SHARD_LANES)]
        assert sorted(rest) == list(range(1, WINDOW_SAMPLES + 1))
