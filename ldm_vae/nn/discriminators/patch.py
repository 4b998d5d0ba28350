"""PatchGAN discriminator.

Isola et al. 2017 (arXiv:1611.07004); layout, names and initialisation of NLayerDiscriminator in
CompVis/taming-transformers (MIT; from junyanz/pytorch-CycleGAN-and-pix2pix, BSD). Ours: GroupNorm by default, because
BatchNorm makes an image's logits depend on its batch, on the process, and on which images are judged in one call.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.nn.norm import GroupNorm

NormKind = Literal["group", "none", "batch"]
KERNEL = 4  # pixels
SLOPE = 0.2  # slope of LeakyReLU below 0
DEVIATION = 0.02  # standard deviation of the normal distribution that first weights are drawn from


def smallest_side(layers: int) -> int:
    """Pixels along the shorter side of the smallest image whose output has one position."""
    return int(3 * 2**layers)


class PatchDiscriminator(nn.Module):
    """(N, in_channels, H, W) in [-1, 1] -> (N, 1, H // 2^layers - 2, W // 2^layers - 2), a logit per overlapping patch.

    channels: width after the first convolution; it doubles with every layer, up to eight times.
    layers: number of convolutions of stride 2.
    Raises UserError for images whose shorter side has fewer than `smallest` pixels.
    """

    def __init__(self, in_channels: int, channels: int = 64, layers: int = 3, norm: NormKind = "group") -> None:
        super().__init__()
        self.smallest = smallest_side(layers)
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        modules: list[nn.Module] = [_convolution(in_channels, widths[0], stride=2), _activation()]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            modules.append(_convolution(widths[i - 1], widths[i], stride, bias=norm != "batch"))
            modules += [*_norm(norm, widths[i]), _activation()]
        modules.append(_convolution(widths[-1], 1, stride=1))
        self.main = nn.Sequential(*modules)

    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[2:]) < self.smallest:
            height, width = image.shape[2:]
            raise UserError(
                f"images of {height}x{width} pixels are too small for the discriminator",
                f"use at least {self.smallest}x{self.smallest}, or fewer layers",
            )
        return self.main(image)


def _convolution(in_channels: int, out_channels: int, stride: int, bias: bool = True) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, KERNEL, stride, padding=1, bias=bias)
    nn.init.normal_(convolution.weight, 0.0, DEVIATION)
    return convolution


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(SLOPE, inplace=True)


def _norm(kind: NormKind, width: int) -> list[nn.Module]:
    if kind == "group":
        # 32 groups, fewer in narrow networks: a group keeps 4 channels, so that one position still has a variance.
        return [GroupNorm(max(math.gcd(width, 128) // 4, 1), width)]
    if kind == "batch":
        norm = nn.BatchNorm2d(width)
        nn.init.normal_(norm.weight, 1.0, DEVIATION)
        return [norm]
    return []
