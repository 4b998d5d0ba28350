"""Trains a recipe in this process or on several, reads the log that a run leaves, and compares two runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.recipe import load_recipe
from train.recipe import Recipe
from train.run import run_training

ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
DOUBLE = ("precision=float64", "validation.metrics=[psnr]")


def run_in_process(recipe: Path, *overrides: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    run_training(load_recipe(Recipe, recipe, overrides))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def assert_same_end(ours: Path, theirs: Path) -> None:
    """Both networks, both optimizers, averages, guard, meter and log, bit for bit."""
    first, second = Checkpoint.latest(ours), Checkpoint.latest(theirs)
    assert first is not None and second is not None and first.step == second.step
    assert {"model", "ema", "discriminator", "optimizer_model", "optimizer_discriminator", "state"} == set(first.groups)
    for group in first.groups:
        a, b = first.tensors(group), second.tensors(group)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), group
    assert first.meta["health"] == second.meta["health"] != {}
    assert rows(ours) == rows(theirs)


def assert_close_end(ours: Path, theirs: Path) -> None:
    """Networks, averages and log agree; float64, sums in another order, enlarged by Adam where a true gradient is 0."""
    first, second = Checkpoint.latest(ours), Checkpoint.latest(theirs)
    assert first is not None and second is not None and first.step == second.step
    for group in ("model", "ema", "discriminator"):
        a, b = first.tensors(group), second.tensors(group)
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-7)
    for row, other in zip(rows(ours), rows(theirs), strict=True):
        assert row.keys() == other.keys()
        assert row == pytest.approx(other, rel=1e-6, abs=1e-9)
