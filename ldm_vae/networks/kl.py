"""The convolutional KL autoencoder of latent diffusion, with the parameter names of diffusers.AutoencoderKL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ldm_vae.networks.network import Anchor, Channels, Decoded, Encoded, Network, NetworkConfig
from ldm_vae.nn.decoder import Decoder
from ldm_vae.nn.encoder import Encoder
from ldm_vae.noise import Noise
from ldm_vae.recipe import Positive

MAX_LEVELS = 10  # f = 512; published codecs have at most 7
MAX_BLOCKS = 32  # of a level; published codecs have at most 5, and without a bound a file of a few bytes takes hours


class AutoencoderConfig(NetworkConfig):
    """Architecture of the convolutional KL autoencoder."""

    train_parts = ("decoder",)

    kind: Literal["kl"] = "kl"
    """The kind of network: the convolutional encoder and decoder of AutoencoderKL."""

    block_out_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=MAX_LEVELS)] = (
        128,
        256,
        512,
        512,
    )
    """Width, in channels, of each level, full resolution first. A latent position stands for f = 2^(levels - 1) pixels
    along each side."""

    layers_per_block: Annotated[int, Field(gt=0, le=MAX_BLOCKS)] = 2
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

    @model_validator(mode="after")
    def _check_levels(self) -> AutoencoderConfig:
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


class Autoencoder(Network):
    """Encoder, 1x1 convolutions around the bottleneck, and decoder."""

    config: AutoencoderConfig
    decoder_names = ("decoder.", "post_quant_conv.")

    def __init__(self, config: AutoencoderConfig, heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(config, heads)
        channels, groups = config.block_out_channels, config.norm_groups
        attention = [level in config.attention_levels for level in range(len(channels))]
        hidden = self.bottleneck.width * config.latent_channels
        self.encoder = Encoder(
            config.in_channels, hidden, channels, config.layers_per_block, attention, config.mid_attention, groups
        )
        self.quant_conv = nn.Conv2d(hidden, hidden, 1) if config.quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(config.latent_channels, config.latent_channels, 1) if config.post_quant_conv else None
        )
        self.decoder = Decoder(
            config.latent_channels,
            self.likelihood.channels(config.out_channels),
            channels,
            config.layers_per_block + 1,
            attention,
            config.mid_attention,
            groups,
        )
        self.encoder.gradient_checkpointing = config.gradient_checkpointing
        self.decoder.gradient_checkpointing = config.gradient_checkpointing

    def run_encoder(self, image: Tensor, label: Tensor | None = None) -> Encoded:
        last = self.encoder(image)
        return Encoded(last.output if self.quant_conv is None else self.quant_conv(last.output), last)

    def run_decoder(self, z: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Decoded:
        last = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return Decoded(last.output, last.below)

    @property
    def anchors(self) -> Mapping[str, Anchor]:
        return {"encoder": Anchor(self.encoder.conv_out), "decoder": Anchor(self.decoder.conv_out)}

    def parts(self, name: str) -> Sequence[nn.Module]:
        """decoder: everything after the latent, so that latents made earlier stay valid."""
        if name != "decoder":
            return super().parts(name)
        return [self.decoder] if self.post_quant_conv is None else [self.post_quant_conv, self.decoder]
