"""What every network of the family has: pictures of one side, a flat latent, and a likelihood with a density."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.family.likelihoods.base import Density, LikelihoodConfig
from ldm_vae.family.likelihoods.gaussian import GaussianLikelihoodConfig
from ldm_vae.networks.network import Channels, Decoded, Encoded, Network, NetworkConfig
from ldm_vae.nn.last_layer import LastLayer
from ldm_vae.noise import Noise
from ldm_vae.parts import LIKELIHOODS

MAX_SIDE = 1024  # pixels; layers that connect everything grow with its fourth power


class FamilyConfig(NetworkConfig):
    """The fields that every network of the family has."""

    side: Annotated[int, Field(gt=0, le=MAX_SIDE)] = 28
    """Side of the pictures in pixels."""

    in_channels: Channels = 1
    """Channels of the image."""

    out_channels: Channels = 1
    """Channels of the reconstruction."""

    latent_channels: Channels = 16
    """d: numbers of the latent, which has no positions."""

    likelihood: Annotated[SerializeAsAny[LikelihoodConfig], LIKELIHOODS] = GaussianLikelihoodConfig()
    """The distribution of the pixels, whose parameters the decoder gives."""

    @property
    def factor(self) -> int:
        """f: the whole picture is one position."""
        return self.side


class FamilyNetwork(Network):
    """An autoencoder of pictures of one side, whose latent is (B, d, 1, 1).

    A subclass defines `read` and `write`.
    """

    config: FamilyConfig
    codec = False

    def __init__(self, config: FamilyConfig, heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(config, heads)
        self.density: Density = LIKELIHOODS.part_of(config.likelihood)(config.likelihood, config.out_channels)

    @property
    def likelihood(self) -> Density:  # type: ignore[override]  # a module, so that it may learn
        """The distribution of the pixels."""
        return self.density

    @property
    def hidden_channels(self) -> int:
        """Channels of the bottleneck's input."""
        return self.bottleneck.width * self.config.latent_channels

    @property
    def parameter_channels(self) -> int:
        """P: channels of the decoder's own output."""
        return self.density.channels(self.config.out_channels)

    @abstractmethod
    def read(self, image: Tensor) -> LastLayer:
        """(B, C, side, side) -> input and output of the encoder's last layer: (B, width * d) the output."""

    @abstractmethod
    def write(self, z: Tensor) -> LastLayer:
        """(B, d) -> input and output of the decoder's last layer: (B, P, side, side) the output."""

    def observe(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        return self.density.observe(image, noise)

    def run_encoder(self, image: Tensor, label: Tensor | None = None) -> Encoded:
        last = self.read(image)
        return Encoded(last.output[:, :, None, None], last)

    def run_decoder(self, z: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Decoded:
        last = self.write(z.flatten(1))
        return Decoded(self.density.complete(last.output), last.below)

    def latent_shape(self, image: Tensor) -> tuple[int, int, int, int]:
        """(B, d, 1, 1) for images (B, C, side, side). Raises UserError for images of another size."""
        batch, _, height, width = image.shape
        side = self.config.side
        if (height, width) != (side, side):
            what = f"images of {height}x{width} pixels for a network of {side}x{side}"
            raise UserError(what, f"set data.image.resize={side} and data.image.crop={side}, or model.side")
        return batch, self.config.latent_channels, 1, 1
