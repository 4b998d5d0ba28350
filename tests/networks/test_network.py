"""What every network does for its bottleneck: at least float32, whatever encoder and decoder compute in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import LoadedModel
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.noise import Noise
from ldm_vae.parts import BOTTLENECKS
from ldm_vae.recipe import Kind
from train.validate import ObservedCodec


class ProjectedConfig(BottleneckConfig):
    kind: Literal["projected"] = "projected"


class Projected(Bottleneck):
    """A bottleneck with weights, whose matrix product takes one type only."""

    width = 1

    def __init__(self, config: ProjectedConfig) -> None:
        super().__init__()
        self.project = nn.Conv2d(4, 4, 1)

    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        z = self.project(hidden)
        assert z.dtype == hidden.dtype
        return Latent(z, z.square(), {})


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Autoencoder:
    monkeypatch.setitem(BOTTLENECKS.table, "projected", Kind(__name__, "ProjectedConfig", "Projected"))
    config = AutoencoderConfig(
        block_out_channels=(8, 16), norm_groups=4, layers_per_block=1, bottleneck=ProjectedConfig()
    )
    return Autoencoder(config).eval().requires_grad_(False)


PROJECTION = "bottleneck.project.weight"
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_training_in_bfloat16_gives_the_bottleneck_float32(model: Autoencoder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = model(IMAGES)
    assert output.posterior.z.dtype == torch.float32
    assert output.parameters.dtype == torch.bfloat16  # so the rest did run in half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_codec_of_any_type(model: Autoencoder, tmp_path: Path, dtype: torch.dtype) -> None:
    export_model(LoadedModel(model, LatentScale(0.5), LatentCodec(model).source), tmp_path / "out", None, command="")
    codec = LatentCodec.load(tmp_path / "out", device="cpu", dtype=dtype)
    assert codec.dtype == codec.model.get_parameter("decoder.conv_in.weight").dtype == dtype
    projection = codec.model.get_parameter(PROJECTION)
    assert projection.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(projection.float(), model.get_parameter(PROJECTION))  # and so was not rounded in between
    reference = LatentCodec(model, LatentScale(0.5))
    # bfloat16 has 8 bits: a few roundings of 2^-8 of values of order 1.
    torch.testing.assert_close(codec.encode(IMAGES).float(), reference.encode(IMAGES), rtol=0.05, atol=0.05)
    assert codec.decode(codec.encode(IMAGES)).shape == IMAGES.shape


def test_validation_sums_in_float64(model: Autoencoder) -> None:
    codec = ObservedCodec(LatentCodec(model, LatentScale()))
    codec.encode(IMAGES)
    assert codec.latent.nats.dtype == torch.float64
    assert model.get_parameter(PROJECTION).dtype == torch.float32  # the network itself keeps its type
