"""A data set of which too many images are broken stops the run, by number and by share, in each source."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import Index, SourceConfig, load_index
from ldm_vae.data.stream.reader import DataConfig, train_batches, validation_batches
from ldm_vae.errors import UserError
from tests.conftest import encoded, picture, write_tar


def shards(folder: Path, good: int, broken: int) -> SourceConfig:
    members = {f"good{number}.png": encoded(picture(number, (8, 8))) for number in range(good)}
    members |= {f"bad{number}.png": b"<html>not found</html>" for number in range(broken)}
    write_tar(folder / "0.tar", members)
    return SourceConfig(shards=str(folder))


def train(index: Index, **options: float) -> int:
    """Two epochs; the number of broken samples."""
    config = DataConfig.model_validate(
        {"train": "x", "batch": 4, "workers": 0, "image": ImageConfig(), "broken_budget": 100} | options
    )
    batches = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
    for _ in itertools.islice(batches, 2 * index.samples // 4 + 1):
        pass
    return len(batches.faults)


def test_a_data_set_of_which_nearly_all_is_broken_is_refused(tmp_path: Path) -> None:
    """90 of 100 are within the budget of 100, and the run would train on the ten that are left."""
    index = load_index([shards(tmp_path, 10, 90)])
    with pytest.raises(UserError, match=r"\d\d of 100 images are broken, a share of 0.2 is .*raise data.broken_share"):
        train(index)
    assert train(index, broken_share=0.9) == 90


@pytest.mark.parametrize(("good", "broken"), [(1, 1), (4, 1), (16, 4), (95, 5)])
def test_small_data_sets_live_with_the_default(tmp_path: Path, good: int, broken: int) -> None:
    assert train(load_index([shards(tmp_path, good, broken)])) == broken


def test_each_source_of_a_mixture_counts_alone(tmp_path: Path) -> None:
    index = load_index([shards(tmp_path / "a", 200, 0), shards(tmp_path / "b", 2, 8)])
    with pytest.raises(UserError, match="of 10 images are broken"):
        train(index)


def test_the_number_holds_beside_the_share(tmp_path: Path) -> None:
    index = load_index([shards(tmp_path, 95, 5)])
    with pytest.raises(UserError, match=r"4 broken samples, 3 are allowed"):
        train(index, broken_budget=3)


def test_validation_leaves_any_share_out(tmp_path: Path) -> None:
    config = DataConfig.model_validate({"train": "x", "batch": 1, "workers": 0, "broken_budget": 9, "broken_share": 0})
    batches = validation_batches(config, load_index([shards(tmp_path, 1, 9)]), batch=4, rank=0, world=1)
    assert [key for batch in batches for key in batch.key] == ["good0"]
