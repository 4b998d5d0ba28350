"""How far a reconstruction is from its image: one number per image and metric, taken on 8-bit values.

psnr         10 log10(255^2 / mean squared error), dB
ssim         Wang et al. 2004: Gaussian window of 11x11 and sigma 1.5, mean over channels and all positions, with the
             border reflected, as torchmetrics (Wang et al. and scikit-image leave the border out)
ms_ssim      Wang et al. 2003: the same window at five scales
lpips_vgg    Zhang et al. 2018 (arXiv:1801.03924), version 0.1, VGG16
lpips_alex   the same, AlexNet

A number that can't be had is absent, and the reason stands in its place; it is never 0.
Check: tests/metrics/test_image.py, against torchmetrics, scikit-image and lpips on photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from ldm_vae.errors import UserError
from ldm_vae.losses.perceptual import LPIPSNetwork
from ldm_vae.metrics.pair import PairNetwork

MetricName = Literal["psnr", "ssim", "ms_ssim", "lpips_vgg", "lpips_alex"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
NETWORKS: dict[MetricName, LPIPSNetwork] = {"lpips_vgg": "vgg", "lpips_alex": "alex"}
SSIM_WINDOW = 11  # pixels
MS_SSIM_SIDE = 161  # pixels; at the fifth scale that is more than ten, so that the window has a place
TORCHMETRICS_MS_SSIM_SIDE = 176  # pixels; its halving rounds down, so it takes no less


@dataclass
class Row:
    """What was measured on one image. A metric stands either in `values` or, with the reason, in `missing`."""

    key: str
    shape: tuple[int, ...]  # (C, H, W) of the image
    squared_error: int | None  # sum over them of squared differences of 8-bit values; None without a reconstruction
    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Numbers in the image."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        height, width = self.shape[1:]
        return {"key": self.key, "height": height, "width": width, "values": self.values, "missing": self.missing}


@dataclass(frozen=True)
class Metric:
    compute: Callable[[Tensor, Tensor], Tensor]  # reconstruction and image, (B, C, H, W) in uint8 -> (B,)
    smallest: int  # pixels along the shorter side
    channels: tuple[int, ...] | None = None  # numbers of image channels it is defined for; None: any
    network: PairNetwork | None = None

    def reason_against(self, images: Tensor) -> str | None:
        """Why it can't be computed on (B, C, H, W), or None."""
        return unfit(images, self.smallest, self.channels)


class ImageMetrics:
    """The metrics asked for, with their networks, ready for batch after batch."""

    def __init__(self, names: Sequence[MetricName] = METRICS, device: torch.device | str = "cpu") -> None:
        """Where the weights of a network can't be had, its metric is missing from every row; all else is computed."""
        self.metrics: dict[MetricName, Metric] = {}
        self.unavailable: dict[str, str] = {}
        for name in names:
            try:
                self.metrics[name] = _build(name, torch.device(device))
            except UserError as error:
                self.unavailable[name] = str(error)

    @torch.inference_mode()
    def __call__(self, reconstruction: Tensor, image: Tensor, keys: Sequence[str]) -> list[Row]:
        """reconstruction, image: (B, C, H, W), uint8, on the device of the networks.   Returns B rows."""
        errors = squared_error(reconstruction, image).tolist()
        rows = [
            Row(key, tuple(image.shape[1:]), error, missing=dict(self.unavailable))
            for key, error in zip(keys, errors, strict=True)
        ]
        for name, metric in self.metrics.items():
            reason = metric.reason_against(image)
            values = [] if reason is not None else metric.compute(reconstruction, image).tolist()
            for i, row in enumerate(rows):
                if reason is not None:
                    row.missing[name] = reason
                elif math.isinf(values[i]):
                    row.missing[name] = "is infinite, because the reconstruction equals the image"
                else:
                    row.values[name] = values[i]
        return rows

    def without_reconstruction(self, image: Tensor, key: str, reason: str) -> Row:
        """The row of an image (C, H, W) of which there is nothing to measure."""
        return Row(key, tuple(image.shape), None, missing=dict.fromkeys((*self.metrics, *self.unavailable), reason))


def unfit(images: Tensor, smallest: int, channels: tuple[int, ...] | None) -> str | None:
    """Why (B, C, H, W) is nothing for a metric of `smallest` pixels a side and these numbers of channels, or None."""
    found, side = images.shape[1], min(images.shape[2:])
    if channels is not None and found not in channels:
        return f"needs images of {' or '.join(map(str, channels))} channels, not {found}"
    return f"needs {smallest} pixels along the shorter side, not {side}" if side < smallest else None


def squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """(B, C, H, W), uint8, of both -> (B,), the sum over each image."""
    return (reconstruction.int() - image.int()).square().sum(dim=(1, 2, 3), dtype=torch.int64)


def psnr(error: Tensor | float, elements: int) -> Tensor:
    """Sum of squared differences of 8-bit values, and how many -> dB, in float64; infinity for 0."""
    return 10.0 * torch.log10(255.0**2 * elements / torch.as_tensor(error, dtype=torch.float64))


def _build(name: MetricName, device: torch.device) -> Metric:
    if name in NETWORKS:
        network = PairNetwork(NETWORKS[name], device)
        return Metric(lambda ours, theirs: network(ours, theirs).distance, network.smallest, (1, 3), network)
    return {
        "psnr": Metric(_psnr, 1),
        "ssim": Metric(_ssim, SSIM_WINDOW),
        "ms_ssim": Metric(_ms_ssim, MS_SSIM_SIDE),
    }[name]


def _psnr(reconstruction: Tensor, image: Tensor) -> Tensor:
    return psnr(squared_error(reconstruction, image), image[0].numel())


def _ssim(reconstruction: Tensor, image: Tensor) -> Tensor:
    values = structural_similarity_index_measure(
        reconstruction / 255.0, image / 255.0, data_range=1.0, sigma=1.5, reduction="none"
    )
    assert isinstance(values, Tensor)  # it returns more only when asked for
    return values.reshape(len(image))


def _ms_ssim(reconstruction: Tensor, image: Tensor) -> Tensor:
    """From 161 to 175 pixels the last row and column are repeated up to the 176 that torchmetrics takes."""
    height, width = image.shape[2:]
    missing = (0, max(0, TORCHMETRICS_MS_SSIM_SIDE - width), 0, max(0, TORCHMETRICS_MS_SSIM_SIDE - height))
    ours, theirs = (F.pad(x / 255.0, missing, mode="replicate") for x in (reconstruction, image))
    values = multiscale_structural_similarity_index_measure(ours, theirs, data_range=1.0, sigma=1.5, reduction="none")
    return values.reshape(len(image))
