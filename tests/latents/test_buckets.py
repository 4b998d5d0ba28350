"""BucketBatchSampler against counting by hand, on all small cases."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.latents.buckets import MIXED_SHARDS, BucketBatchSampler
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.noise import rng
from tests.conftest import npy, write_tar
from tests.latents.jobs import job, run

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)


@dataclass
class Sizes:
    """What the sampler asks of a dataset.

    numbers: the number of each item's size.
    shards: samples in each tar.
    """

    numbers: NDArray[np.int64]
    shards: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def sizes(self) -> NDArray[np.int64]:
        return np.stack([self.numbers + 1, 2 * self.numbers + 1], axis=1)

    @property
    def shard_ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.shards)


def made_of(counts: list[int], shards: int = 3, seed: int = 0) -> LatentDataset:
    """counts[i] items of size i, in random order over some tars."""
    numbers = rng(seed, "sizes").permutation(np.repeat(np.arange(len(counts)), counts))
    parts = [len(part) for part in np.array_split(numbers, shards) if len(part)]
    return cast(LatentDataset, Sizes(numbers, parts))


def epochs(dataset: LatentDataset, batch: int, world: int, epoch: int = 0) -> list[list[list[int]]]:
    """The batches of each process."""
    samplers = [BucketBatchSampler(dataset, batch, rank=rank, world=world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    found = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(batches) for batches in found]
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_every_sample_comes_once_and_every_process_gets_as_many_batches_of_one_size(batch: int, world: int) -> None:
    for counts in itertools.product(range(8), repeat=3):
        if sum(counts) < world:
            continue
        dataset = made_of(list(counts), seed=sum(counts))
        found = epochs(dataset, batch, world)
        assert len({len(batches) for batches in found}) == 1
        sizes = dataset.sizes()
        for step in itertools.chain.from_iterable(found):
            assert 1 <= len(step) <= batch
            assert len({tuple(sizes[item]) for item in step}) == 1
        seen = Counter(item for batches in found for step in batches for item in step)
        assert set(seen) == set(range(len(dataset)))
        whole = sum(count // (batch * world) for count in counts)
        rest = sum(-(-(count % (batch * world)) // batch) for count in counts)
        steps = whole + -(-rest // world)
        assert len(found[0]) == steps
        # Where each batch has a sample of its own, none comes twice.
        assert sum(seen.values()) - len(dataset) == max(0, steps * world - len(dataset))
        if batch > 1 and whole:
            assert max(seen.values()) == 1


def test_whole_steps_have_one_size_on_all_processes() -> None:
    dataset = made_of([40, 25, 7])
    sizes = dataset.sizes()
    found = epochs(dataset, batch=3, world=2)
    whole = 40 // 6 + 25 // 6 + 7 // 6
    for first, second in list(zip(*found, strict=True))[:whole]:
        assert len(first) == len(second) == 3
        assert (sizes[first] == sizes[second[0]]).all()


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    dataset = made_of([30, 30])
    assert epochs(dataset, 4, 2, epoch=1) == epochs(dataset, 4, 2, epoch=1) != epochs(dataset, 4, 2, epoch=2)
    first, other = (list(BucketBatchSampler(dataset, 4, seed=seed)) for seed in (0, 1))
    assert first != other


@pytest.mark.parametrize("start", [0, 1, 5, 14])
def test_an_epoch_is_continued_at_a_batch(start: int) -> None:
    dataset = made_of([30, 20, 4])
    sampler = BucketBatchSampler(dataset, 4)
    sampler.set_epoch(3)
    whole = list(sampler)
    assert len(whole) == 8 + 5 + 1
    sampler.set_epoch(3, start=start)
    assert list(sampler) == whole[start:] and len(sampler) == len(whole) - start
    sampler.set_epoch(4)
    assert len(sampler) == len(whole)


def test_reads_stay_in_some_tars_at_a_time() -> None:
    shards, each = 5 * MIXED_SHARDS, 20
    numbers = np.zeros(shards * each, dtype=np.int64)
    dataset = cast(LatentDataset, Sizes(numbers, [each] * shards))
    order = [item // each for batch in BucketBatchSampler(dataset, 10) for item in batch]
    group = MIXED_SHARDS * each
    for first in range(0, len(order), group):
        assert len(set(order[first : first + group])) == MIXED_SHARDS  # and each tar is read in one group alone
    assert order != sorted(order)


def test_nonsense_is_refused() -> None:
    dataset = made_of([3, 3])
    for batch, rank, world in ((0, 0, 1), (1, 1, 1), (1, -1, 2)):
        with pytest.raises(UserError, match="give batch"):
            BucketBatchSampler(dataset, batch, rank=rank, world=world)
    with pytest.raises(UserError, match="fewer processes"):
        BucketBatchSampler(dataset, 1, world=7)
    with pytest.raises(UserError, match="an epoch has 2 batches"):
        BucketBatchSampler(dataset, 4).set_epoch(0, start=3)


def test_a_loader_gives_batches_of_stored_latents(tmp_path: Path) -> None:
    for tar in range(2):
        members = {}
        for number in range(7):
            height, width = [(8, 8), (7, 9), (12, 3)][number % 3]
            members[f"{tar}{number}.npy"] = npy(np.full((3, height, width), number / 7, np.float32))
            members[f"{tar}{number}.cls"] = str(number).encode()
        write_tar(tmp_path / "shards" / f"{tar}.tar", members)
    codec = LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False))
    run(codec, tmp_path / "shards", tmp_path / "out", job(codec, batch=2, multiple=4))
    dataset = LatentDataset(tmp_path / "out", scale=LatentScale())
    keys = set()
    for batch in DataLoader(dataset, batch_sampler=BucketBatchSampler(dataset, 3), num_workers=0):
        assert batch["latent"].ndim == 4 and batch["cls"].shape == (len(batch["latent"]),)
        keys |= set(batch["key"])
    assert len(keys) == len(dataset)
    shapes = [tuple(dataset[item]["latent"].shape[1:]) for item in range(len(dataset))]
    assert dataset.sizes().tolist() == [list(shape) for shape in shapes] and len(set(shapes)) > 1
