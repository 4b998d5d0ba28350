"""Small architectures of every factor, with and without each of the parts that a configuration switches on or off."""

from __future__ import annotations

from ldm_vae.networks.kl import AutoencoderConfig

WIDTHS = {4: (8, 8, 16), 8: (8, 8, 16, 16), 16: (8, 8, 8, 16, 16), 32: (8, 8, 8, 8, 16, 16)}


def small_config(
    f: int, image: int, latent: int, layers: int, *, quant: bool, middle: bool, levels: bool
) -> AutoencoderConfig:
    """The configuration of a small network.

    f: pixels per latent position along each side.
    image, latent: numbers of channels.
    layers: residual blocks per level.
    quant: whether both 1x1 convolutions exist.
    middle: whether there is attention in the middle.
    levels: whether there is attention in the last two levels.
    """
    last = len(WIDTHS[f]) - 1
    return AutoencoderConfig(
        in_channels=image,
        out_channels=image,
        latent_channels=latent,
        block_out_channels=WIDTHS[f],
        layers_per_block=layers,
        attention_levels=(last - 1, last) if levels else (),
        mid_attention=middle,
        norm_groups=4,
        quant_conv=quant,
        post_quant_conv=quant,
    )


def name(config: AutoencoderConfig) -> str:
    """Such as f8-i3-c4-qm; q, m, l: the parts that it has."""
    chosen = (("q", config.quant_conv), ("m", config.mid_attention), ("l", config.attention_levels))
    flags = "".join(letter for letter, on in chosen if on)
    return f"f{config.factor}-i{config.in_channels}-c{config.latent_channels}-{flags or 'plain'}"
