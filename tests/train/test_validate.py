"""Validation while training, of a network that fails on one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.bottlenecks.gaussian import gaussian_kl
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import validation_batches
from ldm_vae.nn.last_layer import LastLayer
from tests.kl import autoencoder_in
from tests.train.conftest import Build
from train.validate import build_validation, validation_data

pytestmark = pytest.mark.numerical


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
    row = validation(model, taken=7)
    assert row["validation/images"] == 4
    rate = gaussian_kl(mean, logvar)[good].sum(dim=(1, 2, 3)).mean()
    assert row["validation/rate"] == pytest.approx(float(rate), rel=1e-6)  # batches of 4 and 5 sum in another order
    with Image.open(tmp_path / "samples" / "step_00000007.png") as sheet:
        height = images.shape[2]
        shown = [sheet.crop((images.shape[3], i * height, sheet.width, (i + 1) * height)) for i in range(5)]
    colours = [len(picture.getcolors(10**6) or []) for picture in shown]
    assert colours[bad] == 1  # grey
    assert min(colours[i] for i in good) > 1
