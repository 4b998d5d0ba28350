"""The command on a few small photographs. No number of its is compared: machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import load_index
from tests.conftest import ROOT, encoded, picture, write_tar
from tools.bench.load import our_batches, plain_batches, scaling_error


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    members: dict[str, bytes] = {}
    for number in range(6):
        side = 128 if number < 4 else 60
        members |= {f"{number}.jpg": encoded(picture(number, (side + 9, side)), "JPEG"), f"{number}.cls": b"1"}
    write_tar(tmp_path / "photographs" / "000000.tar", members)
    return tmp_path / "photographs"


def test_rows_are_printed_and_written(shards: Path, tmp_path: Path) -> None:
    options = ["--workers", "1", "--resize", "48", "--crop", "32", "--batch", "2", "--images", "8", "--rounds", "1"]
    out = tmp_path / "load.json"
    command = [sys.executable, "-m", "tools.bench", "load", str(shards), *options, "--jpeg-scaling", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (row,) = json.loads(out.read_text())
    assert row["shards"] == "photographs" and row["workers"] == 1
    assert row["images_per_second"] > 0 and row["ratio_webdataset"] > 0 and row["ratio_fewest_workers"] == 1
    assert "| photographs | 1 | " in done.stdout and "4 of 6 pictures decoded at a fraction" in done.stdout


def test_both_give_batches_of_one_kind(shards: Path) -> None:
    index, image = load_index(str(shards)), ImageConfig(resize=48, crop=32, flip=True)
    with our_batches(index, image, 3, 0) as ours, plain_batches(index, image, 3, 0) as theirs:
        (batch,), (images, labels) = next(ours), next(theirs)
    assert batch.image.shape == images.shape == (3, 3, 32, 32) and batch.image.dtype == images.dtype
    assert batch.label is not None and batch.label.tolist() == labels.tolist() == [1, 1, 1]


def test_the_error_of_scaling_is_that_of_the_pictures_it_changes(shards: Path) -> None:
    """Smooth pictures of twice the size and more lose little; where none is so large, nothing changes."""
    index = load_index(str(shards))
    found = scaling_error(index, ImageConfig(resize=48, crop=48, jpeg_scaling=True))
    assert found["scaled"] == 4 and 30 < found["least_psnr"] <= found["mean_psnr"] < 80
    assert scaling_error(index, ImageConfig(resize=100, jpeg_scaling=True))["scaled"] == 0


def test_without_shards_the_remedy_is_named() -> None:
    command = ["env", "-u", "LDM_VAE_TEST_DATA", sys.executable, "-m", "tools.bench", "load"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "bench: no shards to load: name some, or the folder of the photographs in LDM_VAE_TEST_DATA\n"
