"""A codec that diffusers has no class for: a folder of our own, read back to the same codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from ldm_vae import LatentCodec, UserError
from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.cli.app import main
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import LoadedModel, load_model, weights_hash
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.noise import Noise
from ldm_vae.parts import BOTTLENECKS, NETWORKS
from ldm_vae.piecewise import plan_decode
from ldm_vae.recipe import Kind
from tests.tolerance import assert_as_exact, double


class RoundedConfig(BottleneckConfig):
    kind: Literal["rounded"] = "rounded"
    steps: int = 4


class Rounded(Bottleneck):
    width = 1

    def __init__(self, config: RoundedConfig) -> None:
        super().__init__()
        self.steps = nn.Buffer(torch.tensor(config.steps))  # an integer
        self.used = nn.Buffer(torch.arange(2 * config.steps + 1) % 2 == 0)  # booleans

    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        step = (hidden.tanh() * self.steps).round().long()
        step = torch.where(self.used[step + self.steps], step, step & ~1)  # indices and masks: no floats will do
        return Latent(step / self.steps, hidden.new_zeros(len(hidden), 1), {})


class Squashed:
    """Pictures by tanh of the decoder's first output channels; the others would be a scale."""

    def channels(self, image_channels: int) -> int:
        return 2 * image_channels

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, dim=1)[0].tanh()


class SquashedAutoencoder(Autoencoder):
    likelihood = Squashed()


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
    for name, value in codec.model.state_dict().items():
        assert again.model.state_dict()[name].dtype == value.dtype, name
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'from ldm_vae import LatentCodec\ncodec = LatentCodec.load("out")' in card
    assert card.startswith("---\nlibrary_name: ldm_vae\n") and "diffusers" not in card


def test_the_command_names_what_loads_its_folder(
    codec: LatentCodec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(LoadedModel(codec.model, codec.scale, codec.source), tmp_path / "in", None, command="export")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "in"), str(tmp_path / "out")])
    assert not stop.value.code
    assert f"ldm_vae.LatentCodec.load('{tmp_path / 'out'}')" in capsys.readouterr().out


def test_a_hash_of_integers_is_of_the_integers(codec: LatentCodec) -> None:
    """Of neighbours that float32 cannot tell apart, too."""
    steps, hashes = codec.model.get_buffer("bottleneck.steps"), []
    for value in (2**24, 2**24 + 1):
        steps.fill_(value)
        hashes.append(weights_hash(codec.model))
    assert hashes[0] != hashes[1]


def test_another_likelihood_is_no_autoencoder_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters would be shown as the picture there. Whole and in pieces the picture is the same here."""
    monkeypatch.setitem(NETWORKS.table, "kl", Kind(__name__, "AutoencoderConfig", "SquashedAutoencoder"))
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1)
    codec = LatentCodec(SquashedAutoencoder(config).eval().requires_grad_(False), LatentScale(0.5))
    with pytest.raises(UserError, match=r"a gaussian bottleneck and a Squashed: diffusers' AutoencoderKL cannot hold"):
        codec.as_diffusers()
    loaded = LoadedModel(codec.model, codec.scale, codec.source)
    with pytest.raises(UserError, match=r"a gaussian bottleneck and a Squashed: diffusers has no class for it"):
        export_model(loaded, tmp_path / "out", None, target="sd", command="export")
    export_model(loaded, tmp_path / "out", None, command="export")
    again = LatentCodec.load(tmp_path / "out", device="cpu")
    z = torch.randn(1, 4, 40, 24)
    whole = codec.decode_raw(z)
    assert whole.shape == (1, 3, 80, 48) and whole.abs().max() < 1
    assert torch.equal(again.decode_raw(z), whole)
    bound = 600_000  # bytes; less than the whole takes, so that there are pieces
    assert plan_decode(codec.model, 40, 24, max_memory=bound).strips > 1
    assert_as_exact(codec.decode_raw(z, max_memory=bound), whole, double(codec.model).decode(z.double()))


def test_what_diffusers_cannot_hold_is_refused_in_a_line(codec: LatentCodec, tmp_path: Path) -> None:
    loaded = LoadedModel(codec.model, codec.scale, codec.source)
    with pytest.raises(UserError, match="a rounded bottleneck and a PlainPicture: diffusers has no class for it"):
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
