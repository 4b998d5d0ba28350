"""Encoder, bottleneck and decoder as the one module that training wraps and export saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ldm_vae.bottlenecks.base import Latent
from ldm_vae.bottlenecks.gaussian import DiagonalGaussian, GaussianConfig
from ldm_vae.errors import UserError
from ldm_vae.nn.decoder import Decoder
from ldm_vae.nn.encoder import Encoder
from ldm_vae.recipe import Config

Positive = Annotated[int, Field(gt=0)]


class AutoencoderConfig(Config):
    """Architecture of the convolutional KL autoencoder."""

    in_channels: Positive = 3
    """Channels of the image."""

    out_channels: Positive = 3
    """Channels of the reconstruction."""

    latent_channels: Positive = 4
    """Channels of the latent."""

    block_out_channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256, 512, 512)
    """Width, in channels, of each level, full resolution first. A latent position stands for f = 2^(levels - 1) pixels
    along each side."""

    layers_per_block: Positive = 2
    """Residual blocks per level of the encoder; the decoder has one more."""

    attention_levels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Levels that have attention; 0 is full resolution."""

    mid_attention: bool = True
    """Whether the middle blocks of encoder and decoder, at the lowest resolution, have attention."""

    norm_groups: Positive = 32
    """Groups of every GroupNorm; the number divides every width."""

    quant_conv: bool = True
    """Whether a 1x1 convolution stands between encoder and posterior."""

    post_quant_conv: bool = True
    """Whether a 1x1 convolution stands between latent and decoder."""

    gradient_checkpointing: bool = False
    """Computes each level a second time in the backward pass instead of keeping its activations: less memory, more
    time."""

    bottleneck: GaussianConfig = GaussianConfig()
    """How a latent is drawn from what the encoder says."""

    @model_validator(mode="after")
    def _possible(self) -> AutoencoderConfig:
        for width in self.block_out_channels:
            if width % self.norm_groups:
                raise ValueError(f"norm_groups {self.norm_groups} must divide every width, and does not divide {width}")
        for level in self.attention_levels:
            if level >= len(self.block_out_channels):
                raise ValueError(f"attention level {level} is beyond the {len(self.block_out_channels)} levels")
        return self

    @property
    def factor(self) -> int:
        """f: pixels per latent position along each side."""
        return int(2 ** (len(self.block_out_channels) - 1))


class View(Protocol):
    """A change of picture that has a counterpart in latent space (a quarter turn, a scaling)."""

    def image(self, image: Tensor) -> Tensor: ...
    def latent(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Output:
    """Everything that losses may ask of one forward pass; B counts images times samples.

    reconstruction, target: (B, C, H, W).   latent: (B, c, h, w), what the decoder was given.
    posterior: what the bottleneck said.
    last_hidden: (B, channels, H, W), the input of the decoder's last convolution.
    log_variance: (), the learned scalar of the pixel likelihood, or None.
    """

    reconstruction: Tensor
    target: Tensor
    latent: Tensor
    posterior: Latent
    last_hidden: Tensor
    log_variance: Tensor | None = None


class Autoencoder(nn.Module):
    """A convolutional KL autoencoder with the parameter names of diffusers.AutoencoderKL."""

    def __init__(self, config: AutoencoderConfig, *, learned_variance: bool = False) -> None:
        """learned_variance: adds the scalar log-variance of the pixel likelihood, trained along and not exported."""
        super().__init__()
        self.config = config
        channels, groups = config.block_out_channels, config.norm_groups
        attention = [level in config.attention_levels for level in range(len(channels))]
        moments = 2 * config.latent_channels
        self.encoder = Encoder(
            config.in_channels, moments, channels, config.layers_per_block, attention, config.mid_attention, groups
        )
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.quant_conv else None
        self.bottleneck = DiagonalGaussian(config.bottleneck)
        self.post_quant_conv = (
            nn.Conv2d(config.latent_channels, config.latent_channels, 1) if config.post_quant_conv else None
        )
        self.decoder = Decoder(
            config.latent_channels,
            config.out_channels,
            channels,
            config.layers_per_block + 1,
            attention,
            config.mid_attention,
            groups,
        )
        self.log_variance = nn.Parameter(torch.zeros(())) if learned_variance else None
        self.encoder.gradient_checkpointing = config.gradient_checkpointing
        self.decoder.gradient_checkpointing = config.gradient_checkpointing

    def encode(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], H and W multiples of f -> (B, 2c, H/f, W/f), the raw moments."""
        hidden = self.encoder(image)
        return hidden if self.quant_conv is None else self.quant_conv(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w), raw -> (B, C, h*f, w*f)."""
        return self.decoder(self._post_quant(z))

    def forward(
        self,
        image: Tensor,
        *,
        noise: Tensor | None = None,
        label: Tensor | None = None,
        samples: int = 1,
        view: View | None = None,
    ) -> Output:
        """The one call of training, so that it passes through the prepared module and gradients are synchronised.

        image: (B, C, H, W) in [-1, 1].   noise: (B * samples, c, h, w) from N(0, I), or None for the mode.
        label: for networks with a condition; this one has none and makes no use of it.
        samples: draws from the posterior per image, one after the other along the batch.
        view: decode the latent's view and aim at the image's.
        """
        hidden, target = self.encode(image), image
        if samples > 1:
            hidden, target = hidden.repeat_interleave(samples, dim=0), target.repeat_interleave(samples, dim=0)
        posterior = self.bottleneck(hidden, noise)
        latent = posterior.z
        if view is not None:
            latent, target = view.latent(latent), view.image(target)
        last_hidden = self.decoder.hidden(self._post_quant(latent))
        reconstruction = self.decoder.conv_out(last_hidden)
        return Output(reconstruction, target, latent, posterior, last_hidden, self.log_variance)

    def latent_shape(self, image: Tensor) -> tuple[int, int, int, int]:
        """Shape of z for a batch of images (B, C, H, W). Raises UserError where H or W is no multiple of f."""
        batch, _, height, width = image.shape
        factor = self.config.factor
        if height % factor or width % factor:
            raise UserError(
                f"training images of {height}x{width} pixels, which is no multiple of f = {factor}",
                "set data.image.crop to a multiple",
            )
        return batch, self.config.latent_channels, height // factor, width // factor

    def exported_state(self) -> dict[str, Tensor]:
        """The state dict that diffusers.AutoencoderKL loads: everything but what the losses learn."""
        return {name: value for name, value in self.state_dict().items() if name != "log_variance"}

    def _post_quant(self, z: Tensor) -> Tensor:
        return z if self.post_quant_conv is None else self.post_quant_conv(z)
