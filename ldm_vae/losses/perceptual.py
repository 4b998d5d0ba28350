"""LPIPS, the learned perceptual distance, as a loss.

Source: Zhang et al. 2018, arXiv:1801.03924; weights, constants and values of the `lpips` package 0.1.4 (BSD-2), version
0.1 of the metric.
Ours: epsilon is inside the square root, so that a feature vector of zeros has a bounded gradient (lpips gives NaN). The
target gets no gradient. Distances are computed in at least float32, while convolutions may run in bfloat16. There is no
dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.precision import at_least_float32
from ldm_vae.pretrained.backbones import BackboneName, backbone_weights
from ldm_vae.pretrained.frozen import FrozenConfig

LPIPSNetwork = Literal["vgg", "alex"]
Channels = tuple[int, int, int]
FIRST_THREE: Channels = (0, 1, 2)
EPSILON = 1.0e-4  # length below which a feature vector is not stretched to 1; photographs have them from 0.8 up
BACKBONE: Mapping[LPIPSNetwork, BackboneName] = {"vgg": "vgg16", "alex": "alexnet"}
# Pixels along each side of the smallest image for which the last layer has one position.
SMALLEST_IMAGE: Mapping[LPIPSNetwork, int] = {"vgg": 16, "alex": 31}


class PerceptualConfig(FrozenConfig):
    """LPIPS, the learned perceptual distance between image and reconstruction."""

    network: LPIPSNetwork = "vgg"
    """The network whose features are compared: vgg is the usual loss, alex the usual metric."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Loss per unit of LPIPS and per value of an image, since the likelihood is summed over an image's values
    (CompVis)."""

    channels: Literal["rgb", "repeat", "select", "off"] = "rgb"
    """The image channels that the network sees. rgb: all three. repeat: the only one, three times. select: those that
    `select` names. off: no LPIPS."""

    select: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=3, max_length=3)] = FIRST_THREE
    """With `channels: select`, the indices of the image channels shown as red, green and blue; 0 is the first."""

    backbone: Path | None = None
    """File with the network's ImageNet weights; null fetches and caches them."""


def perceptual_channels(config: PerceptualConfig, image_channels: int) -> Channels | None:
    """Indices of the image channels that LPIPS sees as red, green and blue; None for `channels: off`.

    Raises UserError where `channels` does not fit images of `image_channels` channels.
    """
    if config.channels == "off":
        return None
    plural = "s" if image_channels > 1 else ""
    wrong = f"LPIPS on images of {image_channels} channel{plural} with `channels: {config.channels}`"
    if config.channels == "repeat":
        if image_channels != 1:
            raise UserError(wrong, "repeat is for 1 channel; choose select with three indices, or off")
        return (0, 0, 0)
    if config.channels == "select":
        if max(config.select) >= image_channels:
            raise UserError(wrong, f"select {list(config.select)} must name channels from 0 to {image_channels - 1}")
        red, green, blue = config.select
        return red, green, blue
    if image_channels != 3:
        raise UserError(wrong, "say what it should see: repeat (1 channel), select (three indices), or off (no LPIPS)")
    return FIRST_THREE


class LPIPS(nn.Module):
    """(reconstruction, target) -> distance per image. Frozen; only the reconstruction gets a gradient.

    network: vgg (the usual loss) or alex (the usual metric).
    channels: the image channels that it sees as red, green and blue (see perceptual_channels); None: images have three.
    backbone: file with the ImageNet weights; None: found or fetched as in ldm_vae.pretrained.backbones. On the `meta`
        device it has no weights, and none are read.
    `.to(torch.float64)` makes all of it float64.
    """

    def __init__(
        self, network: LPIPSNetwork = "vgg", *, channels: Channels | None = None, backbone: Path | None = None
    ) -> None:
        super().__init__()
        self.network, self.channels = network, channels
        self.features, self.taps = _vgg16_layers() if network == "vgg" else _alexnet_layers()
        heads = _heads(network)
        if next(self.features.parameters()).is_meta:  # built to be counted
            heads = [head.to("meta") for head in heads]
        else:
            self.load_state_dict(backbone_weights(BACKBONE[network], path=backbone))
        for i, head in enumerate(heads):
            self.register_buffer(f"head_{i}", head)
        # What the package scales images in [-1, 1] by: ImageNet's mean and deviation, moved from [0, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """The distance of each image: (B,), in at least float32; 0 for equal images.

        reconstruction, target: (B, C, H, W) in [-1, 1].
        """
        smallest = SMALLEST_IMAGE[self.network]
        if min(target.shape[2:]) < smallest:
            raise UserError(
                f"images of {target.shape[2]}x{target.shape[3]} pixels are too small for LPIPS",
                f"use at least {smallest}x{smallest}, or `channels: off`",
            )
        with torch.no_grad():
            target_features = self._features(target)
        distances = []
        for i, (ours, theirs) in enumerate(zip(self._features(reconstruction), target_features, strict=True)):
            weighted = (ours - theirs).square() * self.get_buffer(f"head_{i}")
            distances.append(weighted.sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).sum(dim=0)

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode, since LPIPS is never trained."""
        return super().train(False)

    def _features(self, image: Tensor) -> list[Tensor]:
        """Features after each layer that is compared; at every position a vector of length 1."""
        if self.channels is not None:
            image = _pick(image, self.channels)
        elif image.shape[1] != 3:
            raise UserError(f"LPIPS on images of {image.shape[1]} channels", "say which it should see, or leave it out")
        hidden = (at_least_float32(image) - self.get_buffer("shift")) / self.get_buffer("scale")
        features = []
        for start, stop in pairwise((0, *self.taps)):
            hidden = self.features[start:stop](hidden)
            features.append(_unit_length(at_least_float32(hidden)))
        return features


def _pick(image: Tensor, channels: Channels) -> Tensor:
    """(B, C, H, W) -> (B, 3, H, W). No list indexes the tensor: a GPU's host would have to wait for its copy."""
    first = channels[0]
    if channels == (first, first + 1, first + 2):
        return image[:, first : first + 3]
    return torch.cat([image[:, channel : channel + 1] for channel in channels], dim=1)


def _unit_length(features: Tensor) -> Tensor:
    """(B, C, h, w) -> the same shape: each vector x over C becomes x / sqrt(|x|^2 + epsilon^2).

    The slope is at most 1 / epsilon.
    """
    return features / (features.square().sum(dim=1, keepdim=True) + EPSILON**2).sqrt()


def _heads(network: LPIPSNetwork) -> list[Tensor]:
    """The `lpips` package's weights of the channels of each layer, (1, C, 1, 1); the package is not imported."""
    spec = find_spec("lpips")
    assert spec is not None and spec.origin is not None  # a dependency of ldm_vae
    file = Path(spec.origin).parent / "weights" / "v0.1" / f"{network}.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"] for i in range(5)]


def _vgg16_layers() -> tuple[nn.Sequential, tuple[int, ...]]:
    """VGG16 up to relu5_3, numbered as in torchvision, and the indices after which features are compared.

    Source: Simonyan & Zisserman 2014, arXiv:1409.1556.
    """
    layers: list[nn.Module] = []
    taps = []
    channels = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        taps.append(len(layers))
    return nn.Sequential(*layers), tuple(taps)


def _alexnet_layers() -> tuple[nn.Sequential, tuple[int, ...]]:
    """AlexNet up to its last ReLU, numbered as in torchvision, and the indices after which features are compared.

    Source: Krizhevsky 2014, arXiv:1404.5997.
    """
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    )
    return layers, (2, 5, 8, 10, 12)
