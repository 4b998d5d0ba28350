"""A run that keeps the encoder it began with keeps its latents, their scale, and what was stored with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import encoder_hash, load_model, weights_hash
from ldm_vae.interop.origin import LatentOrigin
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1, latent_channels=16)


@pytest.fixture
def parent() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CONFIG)


def save(run: Path, model: Autoencoder, origin: object) -> Path:
    meta = {"step": 1, "model": CONFIG.model_dump(mode="json"), "origin": origin}
    Checkpoint.write(run / "checkpoints" / "step_00000001", {"model": model.state_dict()}, meta)
    return run


def child(parent: Autoencoder, part: str) -> Autoencoder:
    """A copy, of which one weight has changed."""
    model = Autoencoder(CONFIG)
    model.load_state_dict(parent.state_dict())
    with torch.no_grad():
        next(model.get_submodule(part).parameters()).add_(0.1)
    return model


def test_hashes_tell_what_latents_depend_on(parent: Autoencoder) -> None:
    decoder, encoder = child(parent, "decoder"), child(parent, "encoder")
    assert weights_hash(parent) != weights_hash(decoder) and encoder_hash(parent) == encoder_hash(decoder)
    assert encoder_hash(parent) != encoder_hash(encoder)
    for part, same in (("post_quant_conv", True), ("quant_conv", False)):
        assert (encoder_hash(parent) == encoder_hash(child(parent, part))) is same, part
    with torch.no_grad():
        bias = parent.get_parameter("encoder.conv_in.bias")
        bias.fill_(0.0)
        zero = encoder_hash(parent)
        bias.fill_(-0.0)  # an average of -0 and -0 is 0
    assert encoder_hash(parent) == zero


@pytest.mark.parametrize("target", [None, "sd3"])
def test_a_decoder_keeps_the_scale_through_run_and_export(parent: Autoencoder, tmp_path: Path, target: object) -> None:
    scale = LatentScale(1.5, 0.06)
    origin = LatentOrigin(encoder_hash(parent), (weights_hash(parent), "older"), scale)
    run = save(tmp_path / "run", child(parent, "decoder"), origin.to_json())
    loaded = load_model(run)
    assert loaded.scale == scale and loaded.source.codecs == origin.codecs
    export_model(loaded, tmp_path / "out", None, target=target, command="")  # type: ignore[arg-type]
    codec = LatentCodec.load(tmp_path / "out", device="cpu")
    assert codec.scale == scale
    assert codec.hashes == (codec.weights_hash, encoder_hash(parent), *origin.codecs)


def test_another_encoder_has_another_scale(parent: Autoencoder, tmp_path: Path) -> None:
    origin = LatentOrigin(encoder_hash(parent), (weights_hash(parent),), LatentScale(1.5))
    loaded = load_model(save(tmp_path / "run", child(parent, "encoder"), origin.to_json()))
    assert loaded.scale is None and loaded.source.codecs == ()
    with pytest.raises(UserError, match="nobody has measured"):
        export_model(loaded, tmp_path / "out", None, command="")


@pytest.mark.parametrize("origin", [{"encoder": "x"}, [], {"encoder": "x", "codecs": 3, "scale": None}, "text"])
def test_a_damaged_origin_is_told(parent: Autoencoder, tmp_path: Path, origin: object) -> None:
    with pytest.raises(UserError, match=r"meta\.json is damaged \(origin"):
        load_model(save(tmp_path / "run", parent, origin))
