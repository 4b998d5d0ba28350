"""Codecs whose latents are known: averages over f x f pixels, which decode to flat squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.probes import Probes, make_probes
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig

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
