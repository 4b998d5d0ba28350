"""Folders of diffusers, both ways, against diffusers itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.interop import diffusers as interop
from ldm_vae.interop.layouts import kl as layout
from ldm_vae.interop.load import load_model
from ldm_vae.interop.weights import WEIGHTS
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.kl import autoencoder_in
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical

PICTURE = torch.linspace(-1, 1, 3 * 16 * 24).reshape(1, 3, 16, 24)
CONFIGS = [
    AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4),
    AutoencoderConfig(block_out_channels=(8,), norm_groups=4, layers_per_block=1, latent_channels=3),
    AutoencoderConfig(block_out_channels=(4, 8, 8), norm_groups=2, attention_levels=(0, 2), mid_attention=False),
    AutoencoderConfig(
        in_channels=12, out_channels=12, block_out_channels=(8, 16), norm_groups=8, quant_conv=False,
        post_quant_conv=False, latent_channels=32, layers_per_block=3,
    ),
]  # fmt: skip


def check_equal(ours: Autoencoder, theirs: AutoencoderKL, picture: torch.Tensor) -> None:
    """Moments and pixels, but for rounding."""
    exact = double(theirs)
    dist, precise = theirs.encode(picture).latent_dist, exact.encode(picture.double()).latent_dist
    assert_as_exact(ours.encode(picture), dist.parameters, precise.parameters)
    z = dist.mode()
    assert_as_exact(ours.decode(z), theirs.decode(z).sample, exact.decode(z.double()).sample)


@pytest.mark.parametrize("config", CONFIGS)
def test_configuration_survives_both_translations(config: AutoencoderConfig) -> None:
    written = layout.to_config(config, LatentScale(0.3), sample_size=256, force_upcast=True)
    assert layout.from_config(written, "test") == config


@pytest.mark.parametrize("config", CONFIGS)
def test_export_is_loaded_by_diffusers_and_gives_the_same_pixels(config: AutoencoderConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = Autoencoder(config).eval()
    scale = LatentScale(0.3, shift=0.1)
    written = layout.to_config(config, scale, sample_size=256, force_upcast=False)
    interop.write_folder(tmp_path / "out", written, ours.exported_state(), {"README.md": "card"})
    theirs, report = AutoencoderKL.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report  # missing, unexpected and mismatched keys, error messages
    assert theirs.config.sample_size == 256
    assert theirs.config.scaling_factor == 0.3
    assert theirs.config.shift_factor == 0.1
    assert theirs.config.force_upcast is False
    picture = torch.rand(2, config.in_channels, 3 * config.factor, 2 * config.factor) * 2 - 1
    with torch.no_grad():
        # The same weights in the same operations; attention alone sums in another order.
        check_equal(ours, theirs, picture)


def test_folder_that_diffusers_saved_is_loaded(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.scale == LatentScale(0.5)
    assert loaded.source.resolution == 64
    check_equal(autoencoder_in(loaded.model), vae, PICTURE)


def test_pipeline_folder_is_loaded_by_its_vae(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae")
    assert autoencoder_in(load_model(tmp_path).model).config.block_out_channels == (8, 8, 16)


def test_old_attention_names_and_pickled_tensors_are_read(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = vae.state_dict()
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in state
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    check_equal(autoencoder_in(load_model(tmp_path).model), vae, PICTURE)


def test_pickled_code_is_refused_and_does_not_run(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    proof = tmp_path / "ran"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (proof,)

    torch.save({"encoder.conv_in.weight": Code()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="damaged or holds more than tensors"):
        load_model(tmp_path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Code()))
    assert proof.exists()  # the code would have run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "is a AutoencoderKLWan"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, "blocks of the type SkipDownBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, r"levels \[2\] of the encoder and \[\] of the decoder"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "names 1 block types for 3 levels"),
        ({"norm_num_groups": 5}, "norm_groups 5 must divide every width"),
        ({"latent_channels": 5}, "asks for one of shape"),
        ({"use_quant_conv": False}, "asks for no such tensor"),
        ({"scaling_factor": "large"}, "is no number"),
        ({"latents_mean": [0.0] * 4}, "come together"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "need 4 numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "is not positive"),
        ({"scaling_factor": -1.0}, "is not positive"),
        ({"scaling_factor": float("inf")}, "is not finite"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "exclude each other"),
    ],
)
def test_what_cannot_be_represented_is_refused_in_one_line(
    vae: AutoencoderKL, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("config.json", b"{", "config.json is damaged"), (WEIGHTS, b"12345678", "cannot be read")],
)
def test_damaged_files_are_named(vae: AutoencoderKL, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    vae.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    model = Autoencoder(CONFIGS[0])
    precious = tmp_path / "thesis" / "chapter.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(UserError, match=r"holds chapter\.txt, which would be lost"):
        interop.write_folder(precious.parent, {}, model.exported_state(), {})
    assert precious.read_text() == "years of work"
    for card in ("first", "second"):
        interop.write_folder(tmp_path / "out", {}, model.exported_state(), {"README.md": card})
    assert (tmp_path / "out" / "README.md").read_text() == "second"
