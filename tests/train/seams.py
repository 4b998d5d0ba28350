"""A new part through the unchanged trainer: on one process, on two, and stopped and resumed.

The test of a part has `register(monkeypatch)`, which makes the part known. On several processes each launches this
module: torchrun ... -m tests.train.seams MODULE_OF_THE_TEST RECIPE [a.b=value ...].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.recipe import load_recipe
from train.__main__ import app
from train.recipe import Recipe
from train.run import run_training

ROOT = Path(__file__).parent.parent.parent
# Rounding of 1e-16 stays small where Adam's eps does not enlarge it; the schedule does not depend on the last step.
SETTINGS = ("precision=float64", "optimizer.eps=1e-4", "optimizer.decay=constant", "log.every=1", "checkpoint.every=1")


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint, but the sums of the log, which each rank has for itself."""
    checkpoint = Checkpoint.latest(run)
    assert checkpoint is not None and checkpoint.step == 6
    groups = [group for group in checkpoint.groups if group != "state"]
    return {f"{group}/{name}": value for group in groups for name, value in checkpoint.tensors(group).items()}


def validated(run: Path) -> dict[str, float]:
    """The last row of a log that was validated: what validation measured, without times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if any(name.startswith("validation/") for name in row)]
    return {name: value for name, value in measured[-1].items() if name.startswith("validation/")}


def train_here(recipe: Path, output: Path, *settings: str) -> None:
    train_plainly(recipe, *SETTINGS, *settings, f"output={output}")


def train_plainly(recipe: Path, *settings: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the precision of the first run
    PartialState._reset_state()
    run_training(load_recipe(Recipe, recipe, settings))


def holds(test: str | None, recipe: Path, folder: Path, *settings: str) -> dict[str, torch.Tensor]:
    """Asserts that two processes equal one, and that a resumed run is bitwise the other. Returns what one ends with.

    test: name of the module whose part is registered here already; None for a part that the package has.
    """
    train_here(recipe, folder / "one", *settings)
    for steps in (2, 6):
        train_here(recipe, folder / "resumed", *settings, f"steps={steps}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", __name__, test or "", str(recipe), *SETTINGS, *settings, f"output={folder / 'two'}"],
        cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    one, two, resumed = (tensors(folder / name) for name in ("one", "two", "resumed"))
    assert one.keys() == two.keys() == resumed.keys()
    for name, value in one.items():
        assert torch.equal(value, resumed[name]), name
        torch.testing.assert_close(two[name], value, rtol=1e-7, atol=1e-9)
    return one


if __name__ == "__main__":
    if (module := sys.argv.pop(1)) != "":
        import_module(module).register(pytest.MonkeyPatch())
    app()
