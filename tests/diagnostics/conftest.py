"""Codecs whose latents are known (averages over f x f pixels, decoded to flat squares), and one of another kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.probes import Probes, make_probes
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.networks.network import Anchor, Decoded, Encoded, Network, NetworkConfig
from ldm_vae.nn.last_layer import LastLayer
from ldm_vae.noise import Noise
from ldm_vae.parts import BOTTLENECKS
from ldm_vae.recipe import Kind

FACTOR = 4


class Averaging(Autoencoder):
    """z = gains * average over 4 x 4 pixels, channel by channel; a gain of 0 is a dead channel.

    Linear, and exactly equivariant under quarter turns; its encoder also under averages over 2 x 2.
    """

    def __init__(self, channels: int, gains: Sequence[float], logvar: float) -> None:
        config = AutoencoderConfig(
            in_channels=channels,
            out_channels=channels,
            latent_channels=len(gains),
            block_out_channels=(4, 4, 4),
            layers_per_block=1,
            norm_groups=2,
            mid_attention=False,
        )
        super().__init__(config)
        self.gains = torch.tensor(gains)[:, None, None]
        self.logvar = logvar
        self.conv_out = nn.Identity()  # a layer that can be watched

    def encode(self, image: Tensor) -> Tensor:
        mean = F.avg_pool2d(image, FACTOR) * self.gains
        return torch.cat([mean, torch.full_like(mean, self.logvar)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        flat: Tensor = F.interpolate(torch.where(self.gains == 0, 0.0, z / self.gains), scale_factor=FACTOR)
        return self.conv_out(flat)


class RoundedConfig(BottleneckConfig):
    kind: Literal["rounded"] = "rounded"


class Rounded(Bottleneck):
    """Whole multiples of 1/8, by a module that gives their indices: neither Gaussian nor free of charge."""

    width = 1

    def __init__(self, config: RoundedConfig) -> None:
        super().__init__()
        self.indices = Indices()

    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        z = self.indices(hidden).to(hidden) / 8
        return Latent(z, z.new_full((len(z), 1), 3.0 * z[0].numel()), {})


class Indices(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden * 8).round().long()


class PatchesConfig(NetworkConfig):
    kind: Literal["patches"] = "patches"

    @property
    def factor(self) -> int:
        return FACTOR


class Patches(Network):
    """A linear network on patches. Its modules have none of the names that the KL network has."""

    def __init__(self, config: PatchesConfig, heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(config, heads)
        c = config.latent_channels
        self.analysis = nn.Conv2d(config.in_channels, self.bottleneck.width * c, FACTOR, stride=FACTOR)
        self.synthesis = nn.Sequential(nn.Conv2d(c, config.out_channels * FACTOR**2, 1), nn.PixelShuffle(FACTOR))

    def run_encoder(self, image: Tensor, label: Tensor | None = None) -> Encoded:
        hidden = self.analysis(image)
        return Encoded(hidden, LastLayer(image, hidden))

    def run_decoder(self, z: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Decoded:
        return Decoded(self.synthesis(z), z)

    @property
    def anchors(self) -> Mapping[str, Anchor]:
        return {"encoder": Anchor(self.analysis), "decoder": Anchor(self.synthesis, "0.weight")}


@pytest.fixture
def patches(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], LatentCodec]:
    """A codec of `Patches` with a bottleneck of any kind; "rounded" is one more."""
    monkeypatch.setitem(BOTTLENECKS.table, "rounded", Kind(__name__, "RoundedConfig", "Rounded"))

    def make(bottleneck: str) -> LatentCodec:
        torch.manual_seed(0)
        model = Patches(PatchesConfig(bottleneck=cast(BottleneckConfig, BOTTLENECKS.config(bottleneck)())))
        return LatentCodec(model.eval().requires_grad_(False), LatentScale(0.5))

    return make


def averaging(channels: int = 3, gains: Sequence[float] | None = None, logvar: float = -6.0) -> LatentCodec:
    model = Averaging(channels, gains or [1.0] * channels, logvar)
    return LatentCodec(model.eval().requires_grad_(False))


def pictures(count: int, *, channels: int = 3, side: int = 64, seed: int = 0) -> Tensor:
    """Smooth random pictures (count, channels, side, side) within [-0.9, 0.9]."""
    coarse = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-0.9, 0.9)


@pytest.fixture
def codec() -> LatentCodec:
    return averaging()


@pytest.fixture
def probes_of() -> Callable[[LatentCodec, Tensor], Probes]:
    """Probes of a codec, whose unit of noise is the deviation of their own latents."""

    def make(codec: LatentCodec, images: Tensor) -> Probes:
        z = codec.draw(codec.moments(images))
        probes = make_probes(codec, list(images), float(z.std(correction=0)))
        assert probes is not None
        return probes

    return make
