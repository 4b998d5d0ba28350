"""Pictures of floats in [0, 1] are told once, with the remedy, whoever reads them."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.data.stream.reader import DataConfig, train_batches, validation_batches
from tests.conftest import npy, write_tar


def warnings_of(folder: Path, arrays: list[np.ndarray], workers: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What training on three epochs of these arrays says, and then validating."""
    write_tar(folder / "0.tar", {f"{number}.npy": npy(array) for number, array in enumerate(arrays)})
    image = ImageConfig(resize=6, crop=4)  # resampling alone brings values below 0
    config = DataConfig.model_validate({"train": "x", "batch": 4, "workers": workers, "image": image})
    index = load_index(str(folder))
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        batches = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
        for _ in itertools.islice(batches, 3 * len(arrays) // 4 + 1):
            pass
        batches.close()
        list(validation_batches(config, index, batch=2, rank=0, world=1))
    return [record.getMessage() for record in caplog.records if "pictures of floats" in record.getMessage()]


def arrays(count: int, low: float, high: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(low, high, (3, 8, 8)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize(("count", "workers"), [(20, 0), (20, 2), (3, 0)])
def test_floats_from_0_to_1_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, workers: int
) -> None:
    (said,) = warnings_of(tmp_path, arrays(count, 0.0, 1.0), workers, caplog)
    assert "has a value below 0: floats are taken as [-1, 1]" in said and "store 2 x - 1, or uint8" in said


@pytest.mark.parametrize(
    "pictures",
    [
        arrays(20, -1.0, 1.0),
        [*arrays(4, 0.0, 1.0), *arrays(16, -0.2, 1.0)],  # some bright ones
        [(array * 255).astype(np.uint8) for array in arrays(20, 0.6, 1.0)],
        [np.zeros((3, 8, 8), np.float32)] * 20,
    ],
)
def test_others_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture, pictures: list[np.ndarray]) -> None:
    assert warnings_of(tmp_path, pictures, 0, caplog) == []
