"""Several sources: their shares, their own orders, filters; and a folder of images that nobody packed."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_vae.data.shards.index import Index, Part, SourceConfig, load_index, write_index
from ldm_vae.data.shards.scan import add_picture_sizes
from ldm_vae.data.shards.shard import ShardIndex, parse_index
from ldm_vae.data.stream.mixture import MIXTURE_BLOCK, from_source, to_source
from ldm_vae.data.stream.order import rest_of_window, sample_refs
from ldm_vae.data.stream.reader import DataConfig, train_batches, validation_batches
from ldm_vae.errors import UserError
from ldm_vae.noise import rng
from ldm_vae.recipe import dump, validate
from tests.data.conftest import MakeShards, WriteTar

weights_of_sources = st.lists(st.floats(0.05, 10), min_size=2, max_size=5).map(tuple)


def index_of(parts: list[list[int]], weights: tuple[float, ...]) -> Index:
    """An index of shards that nobody reads."""
    counts = [count for part in parts for count in part]
    shards = tuple(ShardIndex(f"{i}.tar", 0, b"", np.zeros(n, dtype=np.int64), {}) for i, n in enumerate(counts))
    ends = np.cumsum([len(part) for part in parts]).tolist()
    places = zip([0, *ends], ends, weights, strict=False)
    return Index(shards, tuple(Part(first, stop, weight) for first, stop, weight in places))


@settings(max_examples=30, deadline=None)
@given(weights_of_sources, st.integers(0, 2**40), st.integers(0, 3))
def test_turns_equal_counting_from_the_start(weights: tuple[float, ...], seed: int, block: int) -> None:
    """The positions of each source are 0, 1, 2, ... in the order in which its turns come."""
    positions = np.arange((block + 1) * MIXTURE_BLOCK)
    sources, steps = to_source(weights, seed, positions)
    for source in range(len(weights)):
        mine = positions[sources == source]
        assert steps[sources == source].tolist() == list(range(len(mine)))
        assert from_source(weights, seed, source, np.arange(len(mine))).tolist() == mine.tolist()


@settings(max_examples=30, deadline=None)
@given(weights_of_sources, st.integers(0, 100))
def test_shares_hold_in_every_block(weights: tuple[float, ...], block: int) -> None:
    sources, _ = to_source(weights, 0, np.arange(block * MIXTURE_BLOCK, (block + 1) * MIXTURE_BLOCK))
    for source, weight in enumerate(weights):
        assert abs((sources == source).sum() - weight / sum(weights) * MIXTURE_BLOCK) < 1


def test_turns_are_mixed_and_differ_between_blocks() -> None:
    sources, _ = to_source((1.0, 1.0), 0, np.arange(2 * MIXTURE_BLOCK))
    first, second = sources[:MIXTURE_BLOCK], sources[MIXTURE_BLOCK:]
    assert (first != second).sum() > MIXTURE_BLOCK / 4
    # Runs of equal turns in a fair random sequence: MIXTURE_BLOCK / 2, with a standard deviation of 16; five of them.
    assert abs((np.diff(first) != 0).sum() - MIXTURE_BLOCK / 2) < 80


def test_each_source_keeps_its_own_order_and_epochs() -> None:
    index = index_of([[50, 70], [30]], (3.0, 1.0))
    refs = sample_refs(index, 5, range(2000))
    sources, steps = to_source((3.0, 1.0), 5, np.arange(2000))
    assert {source: {ref.shard for ref, s in zip(refs, sources, strict=True) if s == source} for source in (0, 1)} == {
        0: {0, 1},
        1: {2},
    }
    for source, samples in ((0, 120), (1, 30)):
        mine = [ref for ref, s in zip(refs, sources, strict=True) if s == source]
        assert [ref.epoch for ref in mine] == (steps[sources == source] // samples).tolist()
        for epoch in range(len(mine) // samples):
            part = mine[epoch * samples : (epoch + 1) * samples]
            assert len({(ref.shard, ref.ordinal) for ref in part}) == samples
    alone = sample_refs(index_of([[50, 70]], (1.0,)), 5, range(100))
    assert [ref for ref in refs if ref.shard < 2][:100] == alone  # adding a source moves no other's order


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20_000))
def test_window_of_a_mixture(position: int) -> None:
    index = index_of([[500, 700], [300]], (2.0, 1.0))
    rest = rest_of_window(index, 0, position)
    assert rest[0] == position and (np.diff(rest) > 0).all()
    assert len({(ref.shard < 2, ref.epoch) for ref in sample_refs(index, 0, rest)}) == 1


def test_too_small_a_weight() -> None:
    with pytest.raises(UserError, match=r"the weight of source 2, 0\.0001"):
        sample_refs(index_of([[5], [5]], (1.0, 0.0001)), 0, range(1))


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng(0, "picture", width, height).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
        file, kind
    )
    return file.getvalue()


def sizes_in(shard: ShardIndex) -> list[list[int]]:
    """Width and height of each picture, as its header says."""
    pictures = add_picture_sizes(shard).pictures
    assert pictures is not None
    return pictures.tolist()


def array(*shape: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype=np.uint8))
    return file.getvalue()


def recipe_of(**options: object) -> DataConfig:
    return validate(DataConfig, {"batch": 8, "image": {"crop": 4}, "workers": 0, "broken_budget": 0} | options, "test")


def test_batches_of_a_mixture(make_shards: MakeShards, tmp_path: Path) -> None:
    """From the recipe to the batch, on any ranks and workers, in the shares that the weights say."""
    first = make_shards(tmp_path / "a", [20, 30])
    second = make_shards(tmp_path / "b", [60, 10])
    data = recipe_of(train=[{"shards": str(first), "weight": 3.0}, {"shards": str(second)}])
    index = load_index(data.train)
    assert [part.weight for part in index.parts] == [3.0, 1.0] and index.samples == 120
    found: dict[tuple[int, int], dict[int, tuple[str, bytes]]] = {}
    for world, workers in ((1, 0), (2, 3)):
        slots = found.setdefault((world, workers), {})
        for rank in range(world):
            config = data.model_copy(update={"workers": workers})
            batches = train_batches(config, index, 3, start_step=0, rank=rank, world=world, accumulation=1)
            for step, (batch,) in enumerate(itertools.islice(batches, 16)):
                for slot, key, image in zip(batch.slot.tolist(), batch.key, batch.image, strict=True):
                    slots[step * 8 + slot] = key, image.numpy().tobytes()
            batches.close()
    one, two = found.values()
    assert one == two
    shares = Counter(index.shards[ref.shard].url.split("/")[-2] for ref in sample_refs(index, 3, range(MIXTURE_BLOCK)))
    assert shares == {"a": 768, "b": 256}


def test_validation_and_broken_samples_of_a_mixture_stay_in_their_source(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    first, second = make_shards(tmp_path / "a", [5]), make_shards(tmp_path / "b", [7], side=8)
    index = load_index(recipe_of(train=[{"shards": str(first)}, {"shards": str(second)}]).train)
    assert index.range_of_part(0) == (0, 5) and index.range_of_part(1) == (5, 7)
    offset, size = index.shards[0].fields(2)["png"]
    with Path(index.shards[0].url).open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    config = recipe_of(train="", image={}, broken_budget=1)
    shapes = []
    with pytest.raises(UserError, match="different sizes"):  # the two sources differ in size; no crop
        next(train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1))
    batches = train_batches(
        config.model_copy(update={"batch": 1}), index, 0, start_step=0, rank=0, world=1, accumulation=1
    )
    refs = sample_refs(index, 0, range(200))
    for (batch,), ref in zip(batches, refs, strict=False):
        assert batch.image.shape[2] == (4 if ref.shard == 0 else 8)
        shapes.append(ref)
    assert len(batches.faults) == 1 and len(shapes) == 200
    kept = validation_batches(config, index, batch=4, rank=0, world=1)
    assert sum(len(batch.key) for batch in kept) == 11


def test_recipe_of_sources(tmp_path: Path) -> None:
    plain = recipe_of(train="some/shards")
    assert plain.train == (SourceConfig(shards="some/shards"),)
    assert "train: some/shards\n" in dump(plain)
    sources = [{"shards": "a", "weight": 2}, {"shards": "b", "minimum_side": 256, "maximum_aspect": 2.0}]
    mixed = recipe_of(train=sources)
    for config in (plain, mixed):
        assert validate(DataConfig, config.model_dump(mode="json"), "again") == config
    for wrong, named in (
        ([{"shards": "a", "wieght": 2}], "did you mean 'train.weight'"),
        ([{"shards": "a", "weight": 0}], "greater than 0"),
        ([{"weight": 1}], "shards"),
        ([], "at least 1"),
        (5, "train"),
    ):
        with pytest.raises(UserError, match=named):
            recipe_of(train=wrong)


def test_filters_by_size_and_aspect(write_tar: WriteTar, tmp_path: Path) -> None:
    sizes = [(10, 10), (20, 10), (9, 30), (40, 13), (12, 12), (100, 99)]
    members = {f"{width}x{height}.png": picture(width, height) for width, height in sizes}
    members["broken.png"] = b"no picture"
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", {"tiny.png": picture(2, 2)})

    def left(minimum_side: int | None = None, maximum_aspect: float | None = None) -> set[str]:
        source = SourceConfig(shards=str(tmp_path), minimum_side=minimum_side, maximum_aspect=maximum_aspect)
        index = load_index([source])
        return {shard.key(i) for shard in index.shards for i in range(shard.samples)}

    everything = {f"{width}x{height}" for width, height in sizes} | {"broken", "tiny"}
    for _ in range(2):  # without and with an index
        assert left() == everything
        assert left(minimum_side=10) == {"10x10", "20x10", "40x13", "12x12", "100x99", "broken"}
        assert left(maximum_aspect=2.0) == {"10x10", "20x10", "12x12", "100x99", "tiny", "broken"}
        assert left(minimum_side=12, maximum_aspect=1.5) == {"12x12", "100x99", "broken"}
        write_index(tmp_path)
    index = load_index([SourceConfig(shards=str(tmp_path), minimum_side=12)])
    assert len(index.shards) == 1  # nothing of the second shard is left
    config = recipe_of(train="", broken_budget=1)
    assert sum(len(b.key) for b in validation_batches(config, index, batch=4, rank=0, world=1)) == 3
    (tmp_path / "index.json").unlink()
    write_tar(tmp_path / "0.tar", {"tiny.png": picture(2, 2)})
    with pytest.raises(UserError, match="none of the 2 pictures"):
        left(minimum_side=3)


def test_filtered_scans_are_cached_apart_from_plain_ones(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "0.tar", {"a.png": picture(5, 5), "b.png": picture(9, 9)})
    sources = SourceConfig(shards=str(tmp_path / "s")), SourceConfig(shards=str(tmp_path / "s"), minimum_side=6)
    for _ in range(2):
        assert [load_index([source], cache=tmp_path / "c").samples for source in sources] == [2, 1]


def test_a_remote_index_without_sizes_cannot_be_filtered() -> None:
    members = {"png": {"offset": [512], "size": [9]}}
    shard = {"name": "0.tar", "bytes": 2048, "samples": 1, "keys": ["a"], "members": members}
    content = json.dumps({"format": "ldm_vae.index", "version": 1, "shards": [shard]}).encode()
    fsspec.filesystem("memory").pipe_file("/plain/index.json", content)
    assert load_index("memory://plain").samples == 1
    with pytest.raises(UserError, match="no sizes of pictures"):
        load_index([SourceConfig(shards="memory://plain", minimum_side=5)])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", picture(30, 20)),
        ("a.jpg", picture(30, 20, "JPEG")),
        ("a.webp", picture(30, 20, "WEBP")),
        ("a.tif", picture(30, 20, "TIFF")),
        ("a.npy", array(20, 30)),
        ("a.npy", array(12, 20, 30)),
        ("a.npy", array(20, 30, 12)),
        ("a.png", picture(300, 200)[:30000]),  # more than the bytes looked at first; what follows is not needed
    ],
)
def test_sizes_from_headers(write_tar: WriteTar, tmp_path: Path, name: str, content: bytes) -> None:
    write_tar(tmp_path / "0.tar", {name: content, "a.txt": b""})
    (shard,) = load_index(str(tmp_path)).shards
    size = [300, 200] if len(content) > 20000 else [30, 20]
    assert sizes_in(shard) == [size]
    path = write_index(tmp_path)
    known = parse_index(path.read_bytes(), str(path), str(tmp_path))["0.tar"]
    assert known.pictures is not None and known.pictures.tolist() == [size]


def test_size_behind_a_long_profile(write_tar: WriteTar, tmp_path: Path) -> None:
    """A jpg whose size stands 60 kB into the file."""
    file = io.BytesIO()
    Image.new("RGB", (31, 17)).save(file, "JPEG", icc_profile=b"x" * 60_000)
    write_tar(tmp_path / "0.tar", {"a.jpg": file.getvalue()})
    (shard,) = load_index(str(tmp_path)).shards
    assert sizes_in(shard) == [[31, 17]]


def test_a_folder_of_images_without_packing(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for number in range(600):  # more than a pretended shard holds
        path = folder / f"part{number % 3}" / f"{number:03d}.{'PNG' if number % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(6, 5))
        path.with_suffix(".cls").write_text(str(number))
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    index = load_index(str(folder))
    assert index.counts.tolist() == [256, 256, 88] and index.fields == {"png": 600, "cls": 600}
    config = recipe_of(train="", workers=2, broken_budget=2)
    seen = list(validation_batches(config, index, batch=64, rank=0, world=1))
    keys = [key for batch in seen for key in batch.key]
    assert sorted(keys) == sorted(f"part{number % 3}/{number:03d}" for number in range(600))
    for found in seen:
        assert found.label is not None and found.label.tolist() == [int(key[-3:]) for key in found.key]
    batches = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
    assert len({key for (batch,) in itertools.islice(batches, 75) for key in batch.key}) == 600
    batches.close()
    (folder / "part0" / "000.png").unlink()
    (folder / "part1" / "001.PNG").write_bytes(picture(60, 50))
    kept = validation_batches(config, index, batch=64, rank=0, world=1)
    assert sum(len(batch.key) for batch in kept) == 598
    assert sorted(fault.key for fault in kept.faults) == ["part0/000", "part1/001"]


def test_a_folder_is_filtered_and_mixed_like_shards(make_shards: MakeShards, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for side in range(1, 21):
        (folder / f"{side}.png").write_bytes(picture(side, side))
    shards = make_shards(tmp_path / "shards", [30], labelled=False)
    sources = [SourceConfig(shards=str(folder), minimum_side=11), SourceConfig(shards=str(shards), weight=3.0)]
    index = load_index(sources)
    assert index.counts.tolist() == [10, 30] and index.samples == 40
    batches = train_batches(recipe_of(train=""), index, 0, start_step=0, rank=0, world=1, accumulation=1)
    keys = Counter(key for (batch,) in itertools.islice(batches, 128) for key in batch.key)
    assert {key for key in keys if not key.startswith("s")} == {str(side) for side in range(11, 21)}
    assert sum(count for key, count in keys.items() if key.startswith("s")) == 768


def test_a_file_that_goes_while_training(tmp_path: Path) -> None:
    for side in (5, 6, 7):
        (tmp_path / f"{side}.png").write_bytes(picture(side, side))
    config = recipe_of(train="", batch=3, broken_budget=1)
    batches = train_batches(config, load_index(str(tmp_path)), 0, start_step=0, rank=0, world=1, accumulation=1)
    assert sorted(next(batches)[0].key) == ["5", "6", "7"]
    (tmp_path / "6.png").unlink()
    assert "6" not in next(batches)[0].key
    assert [fault.key for fault in batches.faults] == ["6"]


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards and no images"):
        load_index(str(tmp_path))
