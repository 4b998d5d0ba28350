"""The convolutional KL autoencoder as chains of steps."""

from __future__ import annotations

from ldm_vae.networks.kl import Autoencoder
from ldm_vae.nn.blocks import DownLevel, Downsample, UpLevel, Upsample
from ldm_vae.piecewise.steps import Chain, ChainStep, ConvolutionStep, DownsampleStep, UpsampleStep


def decoder_steps(model: Autoencoder, height: int, width: int) -> list[ChainStep]:
    """`model.run_decoder`, the pixels' parameters, for latents of height x width, cut along the longer side."""
    chain = Chain(model.config.latent_channels, height, width)
    decoder = model.decoder
    if model.post_quant_conv is not None:
        chain.add(ConvolutionStep, model.post_quant_conv)
    chain.add(ConvolutionStep, decoder.conv_in)
    chain.add_blocks(decoder.mid_block)
    for level in decoder.up_blocks:
        assert isinstance(level, UpLevel)
        chain.add_blocks(level)
        for upsample in level.upsamplers:
            assert isinstance(upsample, Upsample)
            chain.add(UpsampleStep, upsample.conv)
    chain.add(ConvolutionStep, decoder.conv_out, decoder.conv_norm_out)
    return chain.steps


def encoder_steps(model: Autoencoder, height: int, width: int) -> list[ChainStep]:
    """`model.encode` of images of height x width, cut along the longer side."""
    chain = Chain(model.config.in_channels, height, width)
    encoder = model.encoder
    chain.add(ConvolutionStep, encoder.conv_in)
    for level in encoder.down_blocks:
        assert isinstance(level, DownLevel)
        chain.add_blocks(level)
        for downsample in level.downsamplers:
            assert isinstance(downsample, Downsample)
            chain.add(DownsampleStep, downsample.conv)
    chain.add_blocks(encoder.mid_block)
    chain.add(ConvolutionStep, encoder.conv_out, encoder.conv_norm_out)
    if model.quant_conv is not None:
        chain.add(ConvolutionStep, model.quant_conv)
    return chain.steps
