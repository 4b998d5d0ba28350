"""The vector VAE: layers that connect everything. Without hidden layers it is the linear VAE, probabilistic PCA.

Source: Kingma & Welling 2013, arXiv:1312.6114, appendix C, with other activations; Lucas et al. 2019, arXiv:1911.02469,
for the linear one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ldm_vae.family.networks.base import FamilyConfig, FamilyNetwork
from ldm_vae.networks.network import Anchor, Channels
from ldm_vae.nn.last_layer import LastLayer

MAX_LAYERS = 32


class MlpConfig(FamilyConfig):
    """Architecture of the vector VAE."""

    kind: Literal["mlp"] = "mlp"
    """The kind of network."""

    widths: Annotated[tuple[Channels, ...], Field(max_length=MAX_LAYERS)] = (512, 512)
    """Widths of the encoder's hidden layers; the decoder mirrors them. Empty: a linear VAE."""


class Mlp(FamilyNetwork):
    """Encoder and decoder of linear layers with SiLU between them."""

    config: MlpConfig

    def __init__(self, config: MlpConfig, heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(config, heads)
        pixels = config.side**2
        self.encoder = _layers(config.in_channels * pixels, *config.widths)
        self.encoder_out = nn.Linear((config.in_channels * pixels, *config.widths)[-1], self.hidden_channels)
        self.decoder = _layers(config.latent_channels, *reversed(config.widths))
        self.decoder_out = nn.Linear((*config.widths[:1], config.latent_channels)[0], self.parameter_channels * pixels)

    def read(self, image: Tensor) -> LastLayer:
        below = self.encoder(image.flatten(1))
        return LastLayer(below, self.encoder_out(below))

    def write(self, z: Tensor) -> LastLayer:
        below = self.decoder(z)
        side = self.config.side
        return LastLayer(below, self.decoder_out(below).view(len(z), self.parameter_channels, side, side))

    @property
    def anchors(self) -> Mapping[str, Anchor]:
        return {"encoder": Anchor(self.encoder_out), "decoder": Anchor(self.decoder_out)}


def _layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(*pair), nn.SiLU()) for pair in pairwise(widths)))
