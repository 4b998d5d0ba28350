"""Every recipe of the family trains where nothing but its output and steps are given, and is drawn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.family.model import load
from ldm_vae.recipe import load_recipe
from tests.conftest import ROOT
from tests.train import seams
from train.recipe import Recipe

RECIPES = sorted((ROOT / "configs/family").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_trains_and_is_drawn_from(path: Path, tmp_path: Path) -> None:
    seams.train_plainly(path, f"output={tmp_path / 'run'}", "steps=2")
    side = load_recipe(Recipe, path).data.image.crop
    assert load(tmp_path / "run", device="cpu").sample(2).shape == (2, 1, side, side)
    assert (tmp_path / "run/samples/step_00000002.png").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_is_headed_by_its_question(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ") and "?" in first + second
