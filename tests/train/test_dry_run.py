"""The dry run says what a recipe changes, what a step costs, and what it found in the data."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ldm_vae.documents import parse_yaml
from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder
from ldm_vae.recipe import changes, load_recipe
from ldm_vae.waiting import usable_cores
from tests.conftest import encoded, picture, write_tar
from tests.train.runs import run_in_process
from train.dry_run import CORE, describe_recipe
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


def said_about(recipe: Path, capsys: pytest.CaptureFixture[str], *overrides: str, measure: bool = False) -> str:
    config = load_recipe(Recipe, recipe, overrides)
    describe_recipe(config, changes(recipe, overrides, Recipe), measure=measure)
    return capsys.readouterr().out


def test_shows_what_differs_from_the_base_as_a_recipe(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("# A change.\nbase: tiny.yaml\nsteps: 6\nmodel: {latent_channels: 3}\n")
    said = said_about(own, capsys, "optimizer.lr=2e-3", "data.batch=4", "data.image.crop=32")
    shown = said[: said.index("autoencoder:")]
    assert parse_yaml(shown, "the description") == {
        "base": str(tmp_path / "tiny.yaml"),
        "model": {"latent_channels": 3},
        "optimizer": {"lr": 0.002},
    }
    (tmp_path / "copied.yaml").write_text(shown)
    changed = load_recipe(Recipe, own, ["optimizer.lr=2e-3"])
    assert load_recipe(Recipe, tmp_path / "copied.yaml") == changed


def test_says_where_the_weights_come_from(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "weights: new, random\n" in said_about(recipe, capsys)
    wide = "model.block_out_channels=[16,16]"
    averaging = said_about(recipe, capsys, "model.initialisation=average", wide, "model.latent_channels=3")
    assert "weights: new, a codec that averages 2 x 2 pixels\n" in averaging
    run_in_process(recipe, "steps=3", "validation.every=9")
    run = load_recipe(Recipe, recipe).output
    assert f"weights: those of {run} at step 3, which it continues\n" in said_about(recipe, capsys)
    begun = [f"model.init_from={run}", f"output={run}-2", "model.train=decoder"]
    own = recipe.parent / "begun.yaml"
    text = recipe.read_text()
    own.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("model:")))
    said = said_about(own, capsys, *begun)
    assert f"weights: those of {run}; decoder alone is trained\n" in said
    assert "of them trained" in said


def test_refuses_what_training_would_refuse_of_an_existing_run(recipe: Path, tmp_path: Path) -> None:
    run_in_process(recipe, "steps=3", "validation.every=9")
    for change, refusal in (
        ("optimizer.lr=1.0", "was started with optimizer.lr: 0.001, not 1.0"),
        ("steps=2", "has taken 3 steps, and steps is 2"),
        (f"data.train={shards(tmp_path / 'other', 20, 0)}", "the training data changed"),
    ):
        with pytest.raises(UserError, match=refusal):
            describe_recipe(load_recipe(Recipe, recipe, [change]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"holds metrics\.jsonl and is no run"):
        describe_recipe(load_recipe(Recipe, recipe, [f"output={tmp_path / 'full'}"]))


def test_names_missing_trackers_after_all_else(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    monkeypatch.setattr("ldm_vae.extras.find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(UserError, match="wandb is not installed"):
        said_about(recipe, capsys, "log.trackers=[wandb]")
    said = capsys.readouterr().out
    assert "images looked at" in said


def test_images_of_different_sizes_are_refused_as_by_training(recipe: Path, tmp_path: Path) -> None:
    members = {f"{n}.png": encoded(picture(n, (48, 40) if n else (64, 40))) for n in range(8)}
    write_tar(tmp_path / "mixed" / "0.tar", members)
    config = [f"data.train={tmp_path / 'mixed'}", "data.image.crop=null"]
    with pytest.raises(UserError, match="images of different sizes in a batch"):
        describe_recipe(load_recipe(Recipe, recipe, config))
    with pytest.raises(UserError, match="5 is not divisible by 1 ranks x 2"):
        describe_recipe(load_recipe(Recipe, recipe, ["data.batch=5", "optimizer.accumulation=2"]))


def test_measures_a_step_and_says_how_long_the_run_takes(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = said_about(recipe, capsys, measure=True)
    assert "100.0% can be used" in said
    assert re.search(r"measured: [\d.]+ s an image, of 4 images at once\n", said)
    assert re.search(r"about [\d.]+ (s|min) on this device, cpu: 24 images, without validation\n", said)
    assert "TOO LONG" not in said
    assert not Path(load_recipe(Recipe, recipe).output).exists()
    steps = "steps=2_000_000_000"
    assert re.search(
        r"about [\d,]+ days .*\nTOO LONG for this device\. ", said_about(recipe, capsys, steps, measure=True)
    )


def test_says_without_measuring_what_no_processor_could_do(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = re.compile(r"a step: ([\d.]+) GFLOP")
    said = said_about(recipe, capsys)
    found = cost.search(said)
    assert found is not None and "TOO LONG" not in said
    each = float(found[1]) * 1e9
    days = 60
    steps = int(days * 86400 * CORE * usable_cores() / each / 4)
    said = said_about(recipe, capsys, f"steps={steps}")
    assert re.search(r"TOO LONG for this device: at least (5\d|6\d) days, were its cores as fast as any", said)


def test_says_that_a_step_is_too_large_for_the_device(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the value that fits by the count of the same description."""
    assert "TOO LARGE" not in said_about(recipe, capsys, "data.batch=16")
    monkeypatch.setattr("train.dry_run.total_memory", lambda device: 2**40)
    assert "TOO LARGE" not in said_about(recipe, capsys, "data.batch=16")
    monkeypatch.setattr("train.dry_run.total_memory", lambda device: 20 * 2**20)
    said = said_about(recipe, capsys, "data.batch=16")
    found = re.search(r"TOO LARGE for the 20 MiB of this device: set optimizer.accumulation=(\d+) ", said)
    assert found is not None
    fitting = ("data.batch=16", f"optimizer.accumulation={found[1]}")
    assert "TOO LARGE" not in said_about(recipe, capsys, *fitting)
    assert "TOO LARGE" in said_about(recipe, capsys, "data.batch=16", f"optimizer.accumulation={int(found[1]) // 2}")


def test_builds_no_weights(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[torch.device] = []
    init = Autoencoder.__init__

    def noted(self: Autoencoder, *given: object) -> None:
        init(self, *given)  # type: ignore[arg-type]
        built.append(next(self.parameters()).device)

    monkeypatch.setattr(Autoencoder, "__init__", noted)
    describe_recipe(load_recipe(Recipe, recipe))
    assert built and {device.type for device in built} == {"meta"}
