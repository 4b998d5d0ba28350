"""Validation while training, of a network that fails on one image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.bottlenecks.gaussian import gaussian_kl
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import validation_batches
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.nn.last_layer import LastLayer
from tests.kl import autoencoder_in
from tests.train.conftest import Build
from tests.train.runs import assert_same_end, rows, run_in_process
from train.preempt import Preemption
from train.step import TRAIN_STEPS
from train.validate import Validation, build_validation, validation_data

pytestmark = pytest.mark.numerical


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def without_shards(folder: Path) -> None:
    for shard in folder.glob("*.tar"):
        shard.unlink()


def overwritten(folder: Path) -> None:
    for shard in folder.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))


@pytest.mark.parametrize("vanish", [removed, without_shards, overwritten])
def test_a_validation_set_that_vanishes_is_named_and_the_training_goes_on(
    recipe: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vanish: Callable[[Path], None],
    injected: Callable[[str, int], None],
) -> None:
    injected(f"validation set {vanish.__name__.replace('_', ' ')} while training", 1)
    held_out = Path(shutil.copytree(shards / "validation", tmp_path / "held_out"))
    original = TRAIN_STEPS["shared"]

    def step_then_vanish(run: Any, micro_batches: Any, step: int) -> Any:
        if step == 4:  # after the validation at 3
            vanish(held_out)
        return original(run, micro_batches, step)

    monkeypatch.setitem(TRAIN_STEPS, "shared", step_then_vanish)
    run_in_process(recipe, f"data.validation={held_out}", "checkpoint.best=validation/psnr", "checkpoint.mode=max")
    run = tmp_path / "run"
    before, after = (row for row in rows(run) if "validation/images" in row)
    assert before["validation/images"] == 5 and before["validation/psnr"] > 0
    assert after == {"step": 6, "validation/images": 0.0, "validation/left_out": 5}
    told = [json.loads(line) for line in (run / "warnings.jsonl").read_text().splitlines()]
    (warning,) = (row["warning"] for row in told if row["step"] == 6)
    assert warning.startswith(f"nothing was validated, since none of the 5 validation images can be read ({held_out}")
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    assert [checkpoint.step for checkpoint in Checkpoint.all(run)] == [3, 6]


def test_validation_images_of_which_none_can_be_used_are_refused(recipe: Path, shards: Path, tmp_path: Path) -> None:
    held_out = Path(shutil.copytree(shards / "validation", tmp_path / "held_out"))
    with pytest.raises(UserError, match=r"no validation image can be used, such as .*smaller than the crop.*: mend"):
        run_in_process(recipe, f"data.validation={held_out}", "validation.crop=512")


def test_a_network_that_is_no_codec_is_not_validated(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = build()
    monkeypatch.setattr(type(run.autoencoder), "codec", False)
    assert build_validation(recipe.validation, recipe.data, tmp_path, run.accelerator, run.autoencoder) is None
    assert "not validated, because a network of kind kl is no codec of images" in caplog.text


def test_an_image_without_a_reconstruction_leaves_the_others_counted_once_and_drawn(
    build: Build, tmp_path: Path
) -> None:
    run, recipe = build("validation.batch=5", "validation.pictures=5")
    assert recipe.data.validation is not None
    index = load_index(recipe.data.validation)
    data = validation_data(recipe.validation, recipe.data, index)
    images = next(validation_batches(data, index, batch=5, rank=0, world=1)).image
    model = autoencoder_in(run.ema.model)
    with torch.no_grad():
        mean, logvar = model.encode(images).double().chunk(2, dim=1)
    order = mean.sum(dim=(1, 2, 3)).argsort()
    *good, bad = order.tolist()
    limit = mean[order[-2:]].sum(dim=(1, 2, 3)).mean()

    def fails_on_the_last(decoder: Any, given: tuple[Tensor], last: LastLayer) -> None:
        last.output[given[0].double().sum(dim=(1, 2, 3)) > limit] = float("nan")

    model.post_quant_conv = None  # so that the decoder is given z
    model.decoder.register_forward_hook(fails_on_the_last)
    validation = build_validation(recipe.validation, recipe.data, tmp_path, run.accelerator, model)
    assert validation is not None
    row = validation(model, taken=7, preemption=Preemption())
    assert row["validation/images"] == 4
    rate = gaussian_kl(mean, logvar)[good].sum(dim=(1, 2, 3)).mean()
    assert row["validation/rate"] == pytest.approx(float(rate), rel=1e-6)  # batches of 4 and 5 sum in another order
    with Image.open(tmp_path / "samples" / "step_00000007.png") as sheet:
        height = images.shape[2]
        shown = [sheet.crop((images.shape[3], i * height, sheet.width, (i + 1) * height)) for i in range(5)]
    colours = [len(picture.getcolors(10**6) or []) for picture in shown]
    assert colours[bad] == 1  # grey
    assert min(colours[i] for i in good) > 1


def test_a_validation_that_fails_loses_no_step(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps before it are saved, though no checkpoint was due, and it is done again when the run goes on."""
    given = ("validation.every=4", "checkpoint.every=100")
    run_in_process(recipe, *given, f"output={tmp_path / 'whole'}")

    def failing(*_: object) -> None:
        raise MemoryError("in the validation")

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "__call__", failing)
        with pytest.raises(MemoryError, match="in the validation"):
            run_in_process(recipe, *given)
    saved = Checkpoint.latest(tmp_path / "run")
    assert saved is not None and saved.step == 4
    run_in_process(recipe, *given)
    assert_same_end(tmp_path / "whole", tmp_path / "run")
