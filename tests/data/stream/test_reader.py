"""Batches against the order they are made from, over ranks, workers, resumes and broken samples."""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch import Tensor

from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import Index, SourceConfig, load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.order import sample_refs
from ldm_vae.data.stream.reader import DataConfig, train_batches, validation_batches
from ldm_vae.data.stream.steps import RankSteps, ValidationOrder
from ldm_vae.data.stream.worker import Share, Shares
from ldm_vae.errors import UserError
from tests import conftest
from tests.data.conftest import MakeShards, ReadRange, WriteTar

SIDE = 6


def config_of(batch: int, *, workers: int = 0, broken_budget: int = 0, image: ImageConfig | None = None) -> DataConfig:
    image = ImageConfig(crop=4, flip=True) if image is None else image
    sources = (SourceConfig(shards=""),)  # the tests give the index themselves
    return DataConfig(train=sources, batch=batch, workers=workers, image=image, broken_budget=broken_budget)


def global_batches(
    index: Index,
    steps: int,
    *,
    batch: int = 12,
    start: int = 0,
    world: int = 1,
    workers: int = 0,
    accumulation: int = 1,
) -> list[dict[int, tuple[str, int, bytes]]]:
    """Step by step, slot -> (key, label, pixels), over all ranks."""
    found: list[dict[int, tuple[str, int, bytes]]] = [{} for _ in range(steps)]
    for rank in range(world):
        batches = train_batches(
            config_of(batch, workers=workers),
            index,
            7,
            start_step=start,
            rank=rank,
            world=world,
            accumulation=accumulation,
        )
        for step, micro in enumerate(itertools.islice(batches, steps)):
            assert [len(m.key) for m in micro] == [batch // world // accumulation] * accumulation
            slots = [int(slot) for m in micro for slot in m.slot]
            assert slots == list(range(rank, batch, world))
            for slot, sample in zip(slots, itertools.chain(*(samples_of(m) for m in micro)), strict=True):
                found[step][slot] = sample
        assert not batches.faults
        batches.close()
    return found


def samples_of(batch: Batch) -> list[tuple[str, int, bytes]]:
    labels = [-1] * len(batch.key) if batch.label is None else batch.label.tolist()
    return [
        (key, label, image.numpy().tobytes()) for key, label, image in zip(batch.key, labels, batch.image, strict=True)
    ]


def numbers_of(image: Tensor) -> list[int]:
    """(B, 3, H, W) -> the number that each picture of `make_shards` shows."""
    values = ((image[:, :, 0, 0] + 1) * 127.5).round().int()
    return (values[:, 0] * 256 + values[:, 1]).tolist()


@pytest.fixture
def index(make_shards: MakeShards, tmp_path: Path) -> Index:
    return load_index(str(make_shards(tmp_path / "shards", [30, 1, 55, 20], side=SIDE)))


def test_batches_hold_the_samples_of_the_order(index: Index) -> None:
    batches = train_batches(config_of(10), index, 3, start_step=0, rank=0, world=1, accumulation=2)
    refs = sample_refs(index, 3, range(250))
    for step, micro in enumerate(itertools.islice(batches, 25)):
        for half, batch in enumerate(micro):
            expected = refs[step * 10 + half * 5 : step * 10 + half * 5 + 5]
            assert batch.key == [index.shards[ref.shard].key(ref.ordinal) for ref in expected]
            assert batch.label is not None and batch.label.dtype == torch.int64
            assert batch.label.tolist() == [int(key[1:]) for key in batch.key] == numbers_of(batch.image)
            assert batch.image.shape == (5, 3, 4, 4) and batch.image.dtype == torch.float32
    assert batches.reads == 250  # one read brings picture, label and headers


def test_plain_webdataset_reads_the_same_samples(index: Index) -> None:
    urls = [shard.url for shard in index.shards]
    plain = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    image = ImageConfig()
    seen: dict[str, tuple[int, Tensor]] = {}
    for batch in validation_batches(config_of(1, image=image), index, batch=7, rank=0, world=1):
        assert batch.label is not None
        labels = batch.label.tolist()
        seen |= {key: (label, picture) for key, label, picture in zip(batch.key, labels, batch.image, strict=True)}
    assert set(seen) == set(plain)
    for key, (label, picture) in seen.items():
        assert int(plain[key]["cls"]) == label
        assert np.array_equal(decode_image(plain[key]["png"], "png", 3), picture.numpy())


def test_photographs_that_others_packed() -> None:
    """Real shards, without an index: the keys of plain webdataset, the labels and pictures of the files."""
    root = os.environ.get("LDM_VAE_TEST_DATA")
    if root is None:
        pytest.skip("LDM_VAE_TEST_DATA does not point at the photographs")
    index = load_index(f"{root}/data/imagenet160-original")
    urls = [shard.url for shard in index.shards]
    plain = {s["__key__"]: int(s["cls"]) for s in webdataset.WebDataset(urls, shardshuffle=False)}
    config = config_of(32, image=ImageConfig(resize=64, crop=64), workers=2)
    batches = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
    seen: dict[str, int] = {}
    for (batch,) in itertools.islice(batches, 5):
        assert batch.label is not None and float(batch.image.std()) > 0.2  # photographs, not constants
        seen |= dict(zip(batch.key, batch.label.tolist(), strict=True))
    assert seen == plain and len(seen) == 160 and not batches.faults
    batches.close()


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_workers_change_nothing(index: Index, workers: int) -> None:
    """Down to the pixels after random crop and flip."""
    assert global_batches(index, 20, workers=workers) == global_batches(index, 20)


@pytest.mark.parametrize(("world", "workers", "accumulation"), [(2, 0, 1), (4, 0, 3), (2, 3, 2), (6, 0, 1)])
def test_ranks_and_accumulation_change_nothing(index: Index, world: int, workers: int, accumulation: int) -> None:
    expected = global_batches(index, 20)
    assert global_batches(index, 20, world=world, workers=workers, accumulation=accumulation) == expected


@pytest.mark.parametrize("workers", [0, 4])
def test_resume_goes_on_as_if_nothing_had_happened(index: Index, workers: int) -> None:
    whole = global_batches(index, 30)
    for start in (1, 8, 9, 17, 26):  # an epoch has 106 samples: 8 is in the middle of one, 9 just after its end
        assert global_batches(index, 4, start=start, workers=workers) == whole[start : start + 4]


def test_killed_twice_and_resumed_on_other_numbers_of_ranks(index: Index) -> None:
    """1 -> 2 -> 4 ranks: the batches are those of one undisturbed run, and each epoch gives every sample once."""
    parts = global_batches(index, 7, world=1) + global_batches(index, 11, start=7, world=2, workers=2)
    parts += global_batches(index, 9, start=18, world=4)
    assert parts == global_batches(index, 27)
    keys = [sample[0] for part in parts for _, sample in sorted(part.items())]
    for epoch in range(3):
        assert Counter(keys[epoch * 106 : (epoch + 1) * 106]) == Counter(f"s{n:06d}" for n in range(106))


@pytest.mark.parametrize(
    ("counts", "world", "workers"), [([5, 9, 4], 2, 4), ([11], 2, 1), ([3], 4, 4), ([1], 2, 2), ([70, 1], 3, 5)]
)
def test_any_shards_on_any_ranks(
    make_shards: MakeShards, tmp_path: Path, counts: list[int], world: int, workers: int
) -> None:
    """Few shards, few samples, many workers: every epoch whole, nothing twice, nothing hangs."""
    index = load_index(str(make_shards(tmp_path / "shards", counts, side=SIDE)))
    batch = 6 * world
    steps = 3 * index.samples // batch + 1
    found = global_batches(index, steps, batch=batch, world=world, workers=workers)
    keys = [sample[0] for part in found for _, sample in sorted(part.items())]
    everything = Counter(f"s{n:06d}" for n in range(index.samples))
    for epoch in range(len(keys) // index.samples):
        assert Counter(keys[epoch * index.samples : (epoch + 1) * index.samples]) == everything


@pytest.mark.parametrize(("world", "workers", "batch"), [(1, 0, 7), (2, 2, 16), (3, 4, 5), (5, 0, 300)])
def test_validation_counts_every_image_once(index: Index, world: int, workers: int, batch: int) -> None:
    keys: list[str] = []
    for rank in range(world):
        config = config_of(1, workers=workers)
        for found in validation_batches(config, index, batch=batch, rank=rank, world=world):
            assert 0 < len(found.key) <= batch
            assert numbers_of(found.image) == [int(key[1:]) for key in found.key] == found.slot.tolist()
            keys += found.key
    assert sorted(keys) == [f"s{n:06d}" for n in range(106)]


def test_more_ranks_than_validation_images(make_shards: MakeShards, tmp_path: Path) -> None:
    index = load_index(str(make_shards(tmp_path / "shards", [2], side=SIDE)))
    sizes = [len(list(validation_batches(config_of(1), index, batch=4, rank=rank, world=4))) for rank in range(4)]
    assert sizes == [1, 1, 0, 0]


def test_validation_of_different_sizes(make_shards: MakeShards, tmp_path: Path) -> None:
    """Each batch has one size; nothing is lost and the order stays."""
    make_shards(tmp_path / "shards", [5], side=4)
    make_shards(tmp_path / "other", [4], side=5)
    (tmp_path / "other" / "000000.tar").rename(tmp_path / "shards" / "000001.tar")
    index = load_index(str(tmp_path / "shards"))
    batches = list(validation_batches(config_of(1, image=ImageConfig()), index, batch=3, rank=0, world=1))
    assert [b.image.shape[2] for b in batches] == [4, 4, 5, 5]
    assert [b.slot.tolist() for b in batches] == [[0, 1, 2], [3, 4], [5], [6, 7, 8]]
    with pytest.raises(UserError, match=r"data\.image\.crop"):
        next(train_batches(config_of(9, image=ImageConfig()), index, 0, start_step=0, rank=0, world=1, accumulation=1))


def test_labels_only_where_all_samples_have_one(
    read_range: ReadRange, make_shards: MakeShards, write_tar: WriteTar, tmp_path: Path
) -> None:
    index = load_index(str(make_shards(tmp_path / "a", [5], labelled=False)))
    assert next(validation_batches(config_of(1), index, batch=5, rank=0, world=1)).label is None
    picture = read_range(index.shards[0].url, *index.shards[0].fields(0)["png"])
    write_tar(tmp_path / "b" / "0.tar", {"x.png": picture, "x.cls": b"1", "y.png": picture})
    mixed = load_index(str(tmp_path / "b"))
    assert next(validation_batches(config_of(1), mixed, batch=5, rank=0, world=1)).label is None


def test_crop_and_flip_change_from_step_to_step_and_are_off_in_validation(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    index = load_index(str(make_shards(tmp_path / "shards", [1], side=32)))
    batches = train_batches(config_of(4), index, 0, start_step=0, rank=0, world=1, accumulation=1)
    blue = torch.cat([next(batches)[0].image[:, 2, 0] for _ in range(25)])  # (100, 4): the left edge, and the direction
    left = ((blue.min(dim=1).values + 1) * 127.5).round()
    flipped = int((blue[:, 0] > blue[:, 3]).sum())
    assert len(left.unique()) > 20  # of 29 places in 100 draws
    assert 25 < flipped < 75  # five standard deviations of 100 coins
    (centre,) = validation_batches(config_of(1), index, batch=1, rank=0, world=1)
    assert torch.equal(((centre.image[0, 2, 0] + 1) * 127.5).round(), torch.arange(14.0, 18.0))


def damage(index: Index, numbers: list[int]) -> None:
    """Overwrites the pictures of these samples."""
    for number in numbers:
        shard, ordinal = index.locate(number)
        offset, size = index.shards[shard].fields(ordinal)["png"]
        with Path(index.shards[shard].url).open("r+b") as file:
            file.seek(offset)
            file.write(b"\0" * size)


@pytest.mark.parametrize("workers", [0, 3])
def test_broken_samples_are_replaced_counted_and_reported(index: Index, workers: int) -> None:
    """The same replacement on any ranks; all other slots as without damage; each broken sample told once."""
    whole = global_batches(index, 18)
    bad = [0, 30, 31, 105]
    damage(index, bad)
    parts: list[list[tuple[str, int, bytes]]] = []
    for world in (1, 2):
        slots: dict[int, tuple[str, int, bytes]] = {}
        told: list[str] = []
        for rank in range(world):
            config = config_of(12, workers=workers, broken_budget=4)
            batches = train_batches(config, index, 7, start_step=0, rank=rank, world=world, accumulation=1)
            for step, (batch,) in enumerate(itertools.islice(batches, 18)):
                slots |= {step * 12 + int(slot): s for slot, s in zip(batch.slot, samples_of(batch), strict=True)}
                told += [fault.key for fault in batches.faults]
                assert all(fault.url in {s.url for s in index.shards} and fault.reason for fault in batches.faults)
                batches.faults.clear()
        assert set(told) == {f"s{n:06d}" for n in bad}
        assert max(Counter(told).values()) <= world
        parts.append([slots[position] for position in range(18 * 12)])
    assert parts[0] == parts[1]
    expected = [step[slot] for step in whole for slot in range(12)]
    lost = {f"s{n:06d}" for n in bad}
    for found, before in zip(parts[0], expected, strict=True):
        assert found[0] not in lost
        assert (found == before) != (before[0] in lost)


def test_over_the_budget_the_run_stops_with_the_list(index: Index) -> None:
    damage(index, list(range(40)))
    batches = train_batches(config_of(12, broken_budget=3), index, 7, start_step=0, rank=0, world=1, accumulation=1)
    with pytest.raises(UserError, match=r"broken samples, 3 are allowed: .*s0000\d\d \(.*raise data.broken_budget"):
        list(itertools.islice(batches, 18))


@pytest.mark.parametrize("workers", [0, 2])
def test_when_everything_is_broken(index: Index, workers: int) -> None:
    """Images all smaller than the crop: no endless search for a replacement, under any budget."""
    config = config_of(12, workers=workers, broken_budget=10**6, image=ImageConfig(crop=64))
    batches = train_batches(config, index, 7, start_step=0, rank=0, world=1, accumulation=1)
    with pytest.raises(UserError, match=r"in a row are broken, .*smaller than the crop"):
        next(batches)


def test_validation_leaves_broken_images_out(index: Index) -> None:
    damage(index, [3, 50])
    batches = validation_batches(config_of(1, broken_budget=2), index, batch=8, rank=0, world=1)
    keys = [key for batch in batches for key in batch.key]
    assert sorted(keys) == sorted(f"s{n:06d}" for n in range(106) if n not in (3, 50))
    assert sorted(fault.key for fault in batches.faults) == ["s000003", "s000050"]


def test_a_shard_that_is_not_what_the_index_says(index: Index, make_shards: MakeShards, tmp_path: Path) -> None:
    """Same size, other members: found at the header, at the sample, while training."""
    make_shards(tmp_path / "other", [1, 30, 1, 55], side=SIDE)  # the same pictures under other names
    url = index.shards[0].url
    data = (tmp_path / "other" / "000001.tar").read_bytes()
    assert len(data) == Path(url).stat().st_size
    Path(url).write_bytes(data)
    batches = validation_batches(config_of(1, broken_budget=30), index, batch=8, rank=0, world=1)
    assert sum(len(batch.key) for batch in batches) == 76
    assert len(batches.faults) == 30
    assert all("the index says" in fault.reason and fault.url == url for fault in batches.faults)


@pytest.mark.parametrize("content", [b"seven", b"", b"1" * 5000, b"9" * 20, b"1.5"])
def test_label_that_is_no_integer(
    read_range: ReadRange, write_tar: WriteTar, make_shards: MakeShards, tmp_path: Path, content: bytes
) -> None:
    source = load_index(str(make_shards(tmp_path / "a", [1])))
    picture = read_range(source.shards[0].url, *source.shards[0].fields(0)["png"])
    write_tar(tmp_path / "b" / "0.tar", {"x.png": picture, "x.cls": content, "y.png": picture, "y.cls": b"-3\n"})
    config = config_of(1, broken_budget=1)
    batches = validation_batches(config, load_index(str(tmp_path / "b")), batch=2, rank=0, world=1)
    (batch,) = batches
    assert batch.key == ["y"] and batch.label is not None and batch.label.tolist() == [-3]
    assert "is no integer" in batches.faults[0].reason


def test_labels_that_some_samples_lack_are_told_once(
    write_tar: WriteTar, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    png = conftest.encoded(conftest.picture(0))
    write_tar(tmp_path / "0.tar", {"a.png": png, "a.cls": b"1", "b.png": png, "b.cls": b"2"})
    write_tar(tmp_path / "1.tar", {"c.png": png, "c.cls": b"1", "d.png": png})
    index = load_index(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (batch,) = next(train_batches(config_of(4), index, 0, start_step=0, rank=0, world=1, accumulation=1))
            assert batch.label is None
    (record,) = caplog.records
    said = f"labels are not used: 1 of 4 samples have no cls, such as {tmp_path}/1.tar d"
    assert record.getMessage() == said


def test_batch_that_cannot_be_shared_out(index: Index) -> None:
    with pytest.raises(UserError, match=r"data\.batch 12 is not divisible by 5 ranks x 1"):
        train_batches(config_of(12), index, 0, start_step=0, rank=0, world=5, accumulation=1)


def test_shards_without_pictures(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.txt": b"a", "a.cls": b"1"})
    with pytest.raises(UserError, match=r"no pictures in .*0\.tar"):
        validation_batches(config_of(1), load_index(str(tmp_path)), batch=2, rank=0, world=1)


def test_global_generators_are_left_alone(index: Index) -> None:
    """Neither read nor moved: what a trainer draws from them does not depend on workers or resumes."""
    states = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tobytes(), torch.get_rng_state()
    for workers in (0, 2):
        global_batches(index, 2, workers=workers)
    assert states[:2] == (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tobytes())
    assert torch.equal(states[2], torch.get_rng_state())


def test_a_share_is_one_buffer_of_as_many_bytes_as_its_pixels_need(write_tar: WriteTar, tmp_path: Path) -> None:
    """A byte for a value of 8 bits, four where a resize or a deeper file makes floats of it, all in one buffer."""
    levels = np.arange(3 * 7 * 5, dtype=np.uint8).reshape(3, 7, 5)
    deep = levels.astype(np.uint16) * 257
    members = {"a.npy": conftest.npy(levels), "b.npy": conftest.npy(deep), "c.npy": conftest.npy(levels[:, ::-1])}
    write_tar(tmp_path / "0.tar", members)
    index = load_index(str(tmp_path))
    steps = RankSteps(ValidationOrder(index), 0, 1, per_step=3, first=0, stop=3)
    (share,) = Shares(ImageConfig(), index, steps)
    assert isinstance(share, Share) and share.pixels.dtype == torch.uint8
    assert len(share.pixels) == 2 * 108 + 4 * 105  # 105 bytes, and three more to the next float
    assert [sample.levels for sample in share.samples] == [True, False, True]
    (batch,) = validation_batches(config_of(1, image=ImageConfig()), index, batch=3, rank=0, world=1)
    for image, array in zip(batch.image.numpy(), (levels, levels, levels[:, ::-1]), strict=True):
        assert np.array_equal(image, array / np.float32(127.5) - np.float32(1))
    (share,) = Shares(ImageConfig(resize=3), index, steps)
    assert isinstance(share, Share) and len(share.pixels) == 3 * 4 * 3 * 4 * 3


@pytest.mark.parametrize(("cores", "ranks", "workers"), [(1, 1, 1), (2, 1, 1), (2.5, 2, 1), (16, 1, 8), (16, 4, 3)])
def test_workers_follow_the_cores_where_a_recipe_gives_no_number(
    cores: float, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm_vae.waiting.usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    config = DataConfig(train=(SourceConfig(shards=""),), batch=1)
    assert config.workers is None and config.worker_count == workers
    assert config.model_copy(update={"workers": 0}).worker_count == 0
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert config.worker_count == min(8, max(1, int(cores) - 1))
