"""The dry run looks at the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.errors import UserError
from ldm_vae.recipe import load_recipe
from tests.conftest import encoded, picture, write_tar
from train.dry_run import describe_recipe
from train.recipe import Recipe


def shards(folder: Path, good: int, broken: int) -> Path:
    members = {f"{number:03d}.png": encoded(picture(number)) for number in range(good)}
    members |= {f"{number:03d}.jpg": b"<html>not found</html>" for number in range(good, good + broken)}
    write_tar(folder / "0.tar", members)
    return folder


def describe(recipe: Path, train: object) -> None:
    describe_recipe(load_recipe(Recipe, recipe, [f"data.train={train}"]))


def test_says_how_many_images_are_broken(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(recipe, shards(tmp_path / "some", 57, 3))
    assert "3 of 60 images looked at are broken, such as" in capsys.readouterr().out
    describe(recipe, shards(tmp_path / "none", 300, 0))
    assert "0 of 75 images looked at are broken" in capsys.readouterr().out


def test_refuses_what_training_would_stop_at(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"16 of 20 images looked at are broken, such as .*004.*UnidentifiedImage"):
        describe(recipe, shards(tmp_path / "most", 4, 16))


def test_looks_at_each_source(recipe: Path, tmp_path: Path) -> None:
    large, small = shards(tmp_path / "large", 700, 0), shards(tmp_path / "small", 2, 6)
    with pytest.raises(UserError, match="6 of 8 images looked at are broken"):
        describe(recipe, f"[{{shards: {large}}}, {{shards: {small}}}]")
