"""First weights of an autoencoder that make it a working codec: it averages f x f pixels.

With `average`, a short training starts from a linear codec: each image channel is averaged down to a latent channel of
its own and repeated back up; every residual branch adds nothing at first. Four parts are known:
zero last convolutions of residual branches (Goyal et al. 2017, arXiv:1706.02677, section 5.1; Zhang et al. 2019,
arXiv:1901.09321), identity convolutions (Zagoruyko & Komodakis 2017, arXiv:1706.00388), a value beside its negative
(Shang et al. 2016, arXiv:1603.05201), since SiLU(x) - SiLU(-x) = x, and low noise in the latent at the start.
Ours: two constants, CONSTANT and -CONSTANT, in the GroupNorm group of each value. They keep the normalisation from
dividing an image's own brightness and contrast away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder
from ldm_vae.networks.network import Network
from ldm_vae.nn.blocks import Attention, Downsample, ResBlock, Upsample

CONSTANT = 2.0  # absolute value of the two constants; images lie in [-1, 1]
FIRST_LOG_VARIANCE = -8.0  # of the posterior at the start: a deviation of 0.018
LANES_PER_VALUE = 4  # channels that carry a value x through the network: x, -x, CONSTANT, -CONSTANT
OTHER_CHANNELS = 0.1  # factor on the weights of all other channels in the last layers of encoder and decoder


@torch.no_grad()
def initialise_average(model: Network) -> None:
    """Overwrites weights in place.

    Raises UserError for a network of another kind, and where the channels are too few for the lanes.
    """
    if not isinstance(model, Autoencoder):
        raise UserError("model.initialisation: average", f"a network of kind {model.config.kind} starts with default")
    config, encoder, decoder = model.config, model.encoder, model.decoder
    groups, values = config.norm_groups, config.in_channels
    if min(config.block_out_channels) // groups < LANES_PER_VALUE or min(groups, config.latent_channels) < values:
        raise UserError(
            "model.initialisation: average",
            f"it needs {LANES_PER_VALUE} channels in every norm group, "
            "and as many groups and latent channels as image channels",
        )
    for module in model.modules():
        if isinstance(module, ResBlock):
            _zero(module.conv2)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, torch.ones(1, 1), groups, values)
        elif isinstance(module, Attention):
            _zero(module.to_out[0])
        elif isinstance(module, Downsample):
            box = torch.zeros(3, 3)
            box[:2, :2] = 0.25
            _carry(module.conv, box, groups, values)
        elif isinstance(module, Upsample):
            _carry(module.conv, _centre(), groups, values)
    for convolution in (model.quant_conv, model.post_quant_conv):
        if convolution is not None:
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(_bias(convolution))
    _enter(encoder.conv_in, groups, values)
    _leave(encoder.conv_out, groups, values)
    if model.bottleneck.gaussian:
        encoder.conv_out.weight[config.latent_channels :] = 0.0
        _bias(encoder.conv_out)[config.latent_channels :] = FIRST_LOG_VARIANCE
    _enter(decoder.conv_in, groups, values)
    _leave(decoder.conv_out, groups, values)


def _enter(convolution: nn.Conv2d, groups: int, values: int) -> None:
    """Input channel k -> the lanes, the first channels of group k.

    The other channels of these groups get weights of 0; all other groups keep the weights that they have.
    """
    size = convolution.out_channels // groups
    _clear(convolution, values * size)
    for k in range(values):
        convolution.weight[k * size, k] = _centre()
        convolution.weight[k * size + 1, k] = -_centre()
        _bias(convolution)[k * size + 2] = CONSTANT
        _bias(convolution)[k * size + 3] = -CONSTANT


def _carry(convolution: nn.Conv2d, kernel: Tensor, groups: int, values: int) -> None:
    """Lanes -> lanes by `kernel`, whose sum is 1. The groups of input and output may have different sizes."""
    source, target = convolution.in_channels // groups, convolution.out_channels // groups
    _clear(convolution, values * target)
    for k in range(values):
        for lane in range(LANES_PER_VALUE):
            convolution.weight[k * target + lane, k * source + lane] = kernel


def _leave(convolution: nn.Conv2d, groups: int, values: int) -> None:
    """Lanes of group k, after the norm and SiLU -> output channel k. Undoes what the norm divided the values by."""
    size = convolution.in_channels // groups
    deviation = CONSTANT * (2 / size) ** 0.5  # standard deviation of a group, which the constants dominate
    convolution.weight *= OTHER_CHANNELS
    nn.init.zeros_(_bias(convolution))
    for k in range(values):
        convolution.weight[k] = 0.0
        convolution.weight[k, k * size] = deviation * _centre()
        convolution.weight[k, k * size + 1] = -deviation * _centre()


def _centre() -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1.0
    return kernel


def _clear(convolution: nn.Conv2d, channels: int) -> None:
    convolution.weight[:channels] = 0.0
    _bias(convolution)[:channels] = 0.0


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None  # all convolutions of the autoencoder have one
    return convolution.bias
