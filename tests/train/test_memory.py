"""A step that does not fit into memory: what is said, and that nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_vae.devices import total_memory
from ldm_vae.interop.checkpoint import Checkpoint
from tests.conftest import ROOT
from tests.train.conftest import Build
from tests.train.runs import ENVIRONMENT, assert_close_end, assert_same_end
from train.cost import Cost
from train.memory import USABLE, fits, fitting, remedy

GIB = 2**30


def count(images: int) -> Cost:
    """2 GiB that stay, and 3 GiB an image."""
    return Cost(images=images, flops=1, state=2 * GIB, peak=(2 + 3 * images) * GIB)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, 2),  # nobody knows: half of the images
        (1000 * GIB, 2),  # half of them would fit by far; as many as before did not
        (40 * GIB, 2),  # 8 images take 2 + 3 * 8 = 26 of the 36 GiB that can be used
        (28 * GIB, 4),  # 26 is more than 25.2; 4 images take 14
        (15 * GIB, 8),
        (6 * GIB, 16),
        (3 * GIB, 16),  # not one image fits: the other remedies are left
    ],
)
def test_the_batch_is_cut_into_parts_that_fit(build: Build, memory: int | None, expected: int) -> None:
    _, recipe = build("data.batch=16")
    found = fitting(recipe, count, 1, memory)
    assert found == expected
    if memory is not None and memory > 6 * GIB:
        assert count(16 // expected).peak <= USABLE * memory


def test_ranks_and_parts_that_there_are_count(build: Build) -> None:
    _, recipe = build("data.batch=24", "optimizer.accumulation=2")
    assert fitting(recipe, count, 2, None) == 4  # 12 images a rank: 4 parts of 3; 3 parts would be no half of 2 parts
    _, recipe = build("data.batch=4", "optimizer.accumulation=4")
    assert fitting(recipe, count, 1, None) is None


def test_words(build: Build) -> None:
    _, recipe = build("data.batch=16")
    assert remedy(recipe, (32, 32), 1, None) == (
        "set optimizer.accumulation=2 (the batch stays 16), model.gradient_checkpointing=true, or a smaller "
        "data.image.crop"
    )
    _, recipe = build("data.batch=1", "model.gradient_checkpointing=true")
    assert remedy(recipe, (32, 32), 1, None) == "set a smaller data.image.crop"


def test_a_step_fits_where_a_tenth_is_left() -> None:
    assert fits(count(1), None) and fits(count(1), 6 * GIB) and not fits(count(1), 5 * GIB)
    assert total_memory(torch.device("cpu")) is None  # it swaps, and others take from it


def on_stand_in(recipe: Path, folder: Path, refuse: int | None = None) -> tuple[int, str, int]:
    """Trains on the device that pretends to be a GPU: exit code, last line, allocations."""
    counts = folder.with_suffix(".json")
    options = [] if refuse is None else ["--refuse", str(refuse)]
    command = [sys.executable, "-m", "tools.stand_in", "run", *options, "--json", str(counts)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [*command, "train", str(recipe), f"output={folder}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert refuse is not None or "on gpu" in done.stderr, done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1], json.loads(counts.read_text())["allocations"]


@pytest.mark.parametrize(
    "share",
    [0.25, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.02, 0.35, 0.5, 0.62, 0.7, 0.85, 0.99))],
)
def test_nothing_is_lost_where_memory_runs_out(recipe: Path, tmp_path: Path, share: float) -> None:
    """An allocation of a run finds no memory. It ends in a line; begun again, it ends as one that had enough."""
    code, _, allocations = on_stand_in(recipe, tmp_path / "whole")
    assert code == 0 and allocations > 5000
    code, said, _ = on_stand_in(recipe, tmp_path / "cut", refuse=int(share * allocations))
    if code == 0:  # where a validation runs out, it goes on with fewer images
        assert said.endswith("SHARDS`")
        assert_close_end(tmp_path / "whole", tmp_path / "cut")
        return
    assert code == 2 and "memory" in said and "Traceback" not in said
    if share == 0.25:  # in a step that does not begin a checkpoint's interval
        assert "optimizer.accumulation=2 (the batch stays 4)" in said
        saved = Checkpoint.latest(tmp_path / "cut")
        assert saved is not None and f"in step {saved.step}," in said and saved.step % 3
    code, _, _ = on_stand_in(recipe, tmp_path / "cut")
    assert code == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
