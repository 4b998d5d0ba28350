"""A codec that diffusers has no class for: a folder of our own, read back to the same codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from ldm_vae import LatentCodec, UserError
from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import LoadedModel, load_model
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.noise import Noise
from ldm_vae.parts import BOTTLENECKS
from ldm_vae.recipe import Kind


class RoundedConfig(BottleneckConfig):
    kind: Literal["rounded"] = "rounded"
    steps: int = 4


class Rounded(Bottleneck):
    width = 1

    def __init__(self, config: RoundedConfig) -> None:
        super().__init__()
        self.steps = config.steps

    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        return Latent((hidden.tanh() * self.steps).round() / self.steps, hidden.new_zeros(len(hidden), 1), {})


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> LatentCodec:
    monkeypatch.setitem(BOTTLENECKS.table, "rounded", Kind(__name__, "RoundedConfig", "Rounded"))
    torch.manual_seed(0)
    config = AutoencoderConfig(
        block_out_channels=(8, 16), norm_groups=4, layers_per_block=1, bottleneck=RoundedConfig(steps=3)
    )
    return LatentCodec(Autoencoder(config).eval().requires_grad_(False), LatentScale(0.5))


def test_round_trip(codec: LatentCodec, tmp_path: Path) -> None:
    loaded = LoadedModel(codec.model, codec.scale, codec.source)
    notes = export_model(loaded, tmp_path / "out", None, command="export")
    assert "diffusers has no class for this network" in notes[0]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["format"] == "ldm_vae.codec" and "_class_name" not in written
    assert written["model"]["kind"] == "kl" and written["model"]["bottleneck"] == {"kind": "rounded", "steps": 3}
    again = LatentCodec.load(tmp_path / "out", device="cpu")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(again.encode(images), codec.encode(images))
    assert torch.equal(again.decode(again.encode(images)), codec.decode(codec.encode(images)))
    assert again.weights_hash == codec.weights_hash and again.scale == codec.scale
    assert "from ldm_vae import LatentCodec" in (tmp_path / "out" / "README.md").read_text()


def test_what_diffusers_cannot_hold_is_refused_in_a_line(codec: LatentCodec, tmp_path: Path) -> None:
    loaded = LoadedModel(codec.model, codec.scale, codec.source)
    with pytest.raises(UserError, match="a bottleneck of kind rounded: diffusers has no class for it"):
        export_model(loaded, tmp_path / "out", None, target="sd", command="export")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="AutoencoderKL cannot hold it"):
        codec.as_diffusers()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "format version 2, newer than 1: update ldm_vae"),
        ({"model": None}, "is damaged"),
        ({"model": {"kind": "unheard"}}, "a network of kind 'unheard': known are kl"),
    ],
)
def test_folders_of_another_kind(codec: LatentCodec, tmp_path: Path, change: dict[str, object], said: str) -> None:
    export_model(LoadedModel(codec.model, codec.scale, codec.source), tmp_path / "out", None, command="export")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=said):
        load_model(tmp_path / "out")
