"""The examples in docstrings are run, in a folder that holds a codec and a photograph."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ldm_vae import codec, images
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import LoadedModel, ModelSource
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import picture

CONFIG = AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)


@pytest.fixture
def beside_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Autoencoder(CONFIG).eval().requires_grad_(False)
    source = ModelSource("x", "diffusers")
    export_model(LoadedModel(model, LatentScale(0.5), source), tmp_path / "codec", None, command="")
    picture(0).resize((70, 50)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("beside_a_codec")
@pytest.mark.parametrize(("module", "least"), [(codec, 8), (images, 6)])
def test_examples_give_what_they_say(module: ModuleType, least: int) -> None:
    names = {"LatentCodec": codec.LatentCodec, "torch": torch, "np": np}
    names |= {name: value for name, value in vars(images).items() if not name.startswith("_")}
    done = doctest.testmod(module, extraglobs=names)
    assert done.failed == 0 and done.attempted >= least


def test_every_method_of_a_codec_has_a_docstring() -> None:
    public = {name: value for name, value in vars(codec.LatentCodec).items() if not name.startswith("_")}
    assert {name for name, value in public.items() if not (value.__doc__ or "").strip()} <= {
        "latent_channels", "device", "dtype",
    }  # fmt: skip
