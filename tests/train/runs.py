"""Trains a recipe in this process, and reads the log that a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState

from ldm_vae.recipe import load_recipe
from train.__main__ import run_training
from train.recipe import Recipe


def run_in_process(recipe: Path, *overrides: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    run_training(load_recipe(Recipe, recipe, overrides))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]
