"""How far a reconstruction is from its image: one number for each image and metric, on values from 0 to 255.

psnr         10 log10(255^2 / mean squared error), dB
ssim         Wang et al. 2004: Gaussian window of 11x11 and sigma 1.5, mean over channels and all positions, with the
             border reflected, as torchmetrics (Wang et al. and scikit-image leave the border out)
ssim_signed  the same on values in [-1, 1], as VA-VAE's script has it. It is another number, since the mean of a window,
             which SSIM compares, may then be zero or negative; SSIM is defined for intensities from 0 on
ssim_uniform the same index with a uniform window of 7x7, sample covariances and without the border: the defaults of
             scikit-image, as SEED's script has it
ms_ssim      Wang et al. 2003: the same window at five scales
lpips_vgg    Zhang et al. 2018 (arXiv:1801.03924), version 0.1, VGG16
lpips_alex   the same, AlexNet

The two variants of SSIM are there for protocols that use them; nothing else should.

A metric that can't be computed for an image has a reason instead of a number; it is never 0.
Check: tests/metrics/test_image.py, against torchmetrics, scikit-image and lpips on photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.choices import USUAL_IMAGE_METRICS, MetricName
from ldm_vae.errors import UserError
from ldm_vae.extras import extra, require
from ldm_vae.losses.perceptual import LPIPSNetwork
from ldm_vae.metrics.pair import PairNetwork
from ldm_vae.metrics.pixels import ImagePairs, Rounding
from ldm_vae.transfer import Landing

OF_TORCHMETRICS: tuple[MetricName, ...] = ("ssim", "ssim_signed", "ms_ssim")  # the others need no extra
LPIPS_NETWORKS: dict[MetricName, LPIPSNetwork] = {"lpips_vgg": "vgg", "lpips_alex": "alex"}
SQUARED_ERROR = "squared_error"  # beside the metrics of a batch
SSIM_WINDOW = 11  # pixels
UNIFORM_WINDOW = 7  # pixels
MS_SSIM_SIDE = 161  # pixels; more than ten at the fifth scale, so that the window fits
TORCHMETRICS_MS_SSIM_SIDE = 176  # pixels; it rounds down at each scale, so it takes no fewer


@dataclass
class MeasuredImage:
    """What was measured on one image. Each metric is either in `values` or in `missing`.

    key: name of the image.
    shape: (C, H, W) of the image.
    squared_error: sum of the squared differences of all values, as PSNR sees them; None without a reconstruction.
    values: metric -> its value.
    missing: metric -> why it has no value.
    """

    key: str
    shape: tuple[int, ...]
    squared_error: float | None
    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """How many numbers the image has."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        height, width = self.shape[1:]
        return {"key": self.key, "height": height, "width": width, "values": self.values, "missing": self.missing}


@dataclass(frozen=True)
class Metric:
    """How a metric is computed, and for which images.

    compute: reconstruction and image, (B, C, H, W), values from 0 to 255 -> (B,).
    smallest: pixels along the shorter side that it needs.
    channels: numbers of image channels that it is defined for; None for any.
    network: the network it uses, if any.
    """

    compute: Callable[[Tensor, Tensor], Tensor]
    smallest: int
    channels: tuple[int, ...] | None = None
    network: PairNetwork | None = None

    def reason_against(self, images: Tensor) -> str | None:
        """Why it can't be computed for these images (B, C, H, W); None if it can."""
        return unfit(images, self.smallest, self.channels)


class ImageMetrics:
    """Computes the chosen metrics, batch after batch. It holds their networks."""

    def __init__(
        self,
        names: Sequence[MetricName] = USUAL_IMAGE_METRICS,
        device: torch.device | str = "cpu",
        *,
        rounding: Mapping[str, Rounding] = MappingProxyType({}),
    ) -> None:
        """If the weights of a network can't be had, its metric is missing for all images; others are computed.

        Raises MissingExtra where a metric is torchmetrics', and the extra `metrics` is not installed.

        rounding: by name of a metric, the values that it compares; a metric that is not named compares the nearest.
        """
        for name in set(OF_TORCHMETRICS).intersection(names):
            require("metrics", name, package="torchmetrics")
        self.rounding = rounding
        self.metrics: dict[MetricName, Metric] = {}
        self.unavailable: dict[str, str] = {}
        for name in names:
            try:
                self.metrics[name] = _build(name, torch.device(device))
            except UserError as error:
                self.unavailable[name] = str(error)

    def __call__(self, pairs: ImagePairs, keys: Sequence[str]) -> list[MeasuredImage]:
        """Measures a batch, on the device of the networks, and returns one result for each image."""
        tensors, missing = self.measured(pairs)
        values = dict(zip(tensors, Landing([*tensors.values()]).wait(), strict=True))
        return self.rows(keys, tuple(pairs.image.shape[1:]), values, missing)

    @torch.inference_mode()
    def measured(self, pairs: ImagePairs) -> tuple[dict[str, Tensor], dict[str, str]]:
        """`SQUARED_ERROR` and the metrics of a batch, each (B,) on its device; and why others have no value."""
        values = {SQUARED_ERROR: squared_error(*pairs.rounded(self.rounding.get("psnr", "nearest")))}
        missing: dict[str, str] = {}
        for name, metric in self.metrics.items():
            reconstruction, image = pairs.rounded(self.rounding.get(name, "nearest"))
            reason = metric.reason_against(image)
            if reason is None:
                values[name] = metric.compute(reconstruction, image)
            else:
                missing[name] = reason
        return values, missing

    def rows(
        self, keys: Sequence[str], shape: tuple[int, ...], values: Mapping[str, Tensor], missing: Mapping[str, str]
    ) -> list[MeasuredImage]:
        """One result for each image, from what `measured` gave, on the host.

        shape: (C, H, W) of the images.
        """
        errors = values[SQUARED_ERROR].tolist()
        rows = [
            MeasuredImage(key, shape, error, missing=dict(self.unavailable))
            for key, error in zip(keys, errors, strict=True)
        ]
        for name in self.metrics:
            found = values[name].tolist() if name in values else []
            for i, row in enumerate(rows):
                if name in missing:
                    row.missing[name] = missing[name]
                elif math.isinf(found[i]):
                    row.missing[name] = "is infinite, because the reconstruction equals the image"
                else:
                    row.values[name] = found[i]
        return rows

    def without_reconstruction(self, image: Tensor, key: str, reason: str) -> MeasuredImage:
        """The result for an image (C, H, W) that has no reconstruction.

        reason: why.
        """
        return MeasuredImage(
            key, tuple(image.shape), None, missing=dict.fromkeys((*self.metrics, *self.unavailable), reason)
        )


def unfit(images: Tensor, smallest: int, channels: tuple[int, ...] | None) -> str | None:
    """Why a metric that needs `smallest` pixels a side and such channels can't take (B, C, H, W); None if it can."""
    found, side = images.shape[1], min(images.shape[2:])
    if channels is not None and found not in channels:
        return f"needs images of {' or '.join(map(str, channels))} channels, not {found}"
    return f"needs {smallest} pixels along the shorter side, not {side}" if side < smallest else None


def squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The sum of squared differences over each image: (B, C, H, W) from 0 to 255 twice -> (B,), exact for uint8."""
    if reconstruction.dtype == torch.uint8:
        return (reconstruction.int() - image.int()).square().sum(dim=(1, 2, 3), dtype=torch.int64)
    return (reconstruction - image).square().sum(dim=(1, 2, 3), dtype=torch.float64)


def psnr(error: Tensor | float, elements: int) -> Tensor:
    """PSNR in dB, in float64, from a sum of squared differences of `elements` 8-bit values; infinity for 0."""
    exact = error.double() if isinstance(error, Tensor) else torch.tensor(error, dtype=torch.float64)
    return 10.0 * torch.log10(255.0**2 * elements / exact)


def _build(name: MetricName, device: torch.device) -> Metric:
    if name in LPIPS_NETWORKS:
        network = PairNetwork(LPIPS_NETWORKS[name], device)
        return Metric(lambda ours, theirs: network(ours, theirs).distance, network.smallest, (1, 3), network)
    return {
        "psnr": Metric(_psnr, 1),
        "ssim": Metric(_ssim, SSIM_WINDOW),
        "ssim_signed": Metric(_ssim_signed, SSIM_WINDOW),
        "ssim_uniform": Metric(_ssim_uniform, UNIFORM_WINDOW),
        "ms_ssim": Metric(_ms_ssim, MS_SSIM_SIDE),
    }[name]


def _psnr(reconstruction: Tensor, image: Tensor) -> Tensor:
    return psnr(squared_error(reconstruction, image), image[0].numel())


def _ssim(reconstruction: Tensor, image: Tensor) -> Tensor:
    return _structural_similarity(reconstruction / 255.0, image / 255.0, 1.0)


def _ssim_signed(reconstruction: Tensor, image: Tensor) -> Tensor:
    ours, theirs = (x / 127.5 - 1.0 for x in (reconstruction, image))
    return _structural_similarity(ours, theirs, (-1.0, 1.0))  # it clamps to the range


def _structural_similarity(ours: Tensor, theirs: Tensor, data_range: float | tuple[float, float]) -> Tensor:
    with extra("metrics"):  # torchmetrics takes seconds to import, so whatever needs it imports it when it is called
        from torchmetrics.functional.image import structural_similarity_index_measure
    values = structural_similarity_index_measure(ours, theirs, data_range=data_range, sigma=1.5, reduction="none")
    assert isinstance(values, Tensor)  # it returns more only when asked for
    return values.reshape(len(theirs))


def _ssim_uniform(reconstruction: Tensor, image: Tensor) -> Tensor:
    """In float64, since a variance is the difference of two means here."""
    ours, theirs = (x.double() / 255.0 for x in (reconstruction, image))
    luminance, contrast = 0.01**2, 0.03**2  # C1 and C2 of Wang et al.
    unbiased = UNIFORM_WINDOW**2 / (UNIFORM_WINDOW**2 - 1)

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, UNIFORM_WINDOW, stride=1)

    a, b = mean(ours), mean(theirs)
    a_variance, b_variance, covariance = (
        unbiased * (mean(product) - squared)
        for product, squared in ((ours * ours, a * a), (theirs * theirs, b * b), (ours * theirs, a * b))
    )
    index = ((2 * a * b + luminance) * (2 * covariance + contrast)) / (
        (a * a + b * b + luminance) * (a_variance + b_variance + contrast)
    )
    return index.mean(dim=(1, 2, 3))


def _ms_ssim(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Images of 161 to 175 pixels get their last row and column repeated, because torchmetrics takes 176 at least."""
    with extra("metrics"):
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
    height, width = image.shape[2:]
    missing = (0, max(0, TORCHMETRICS_MS_SSIM_SIDE - width), 0, max(0, TORCHMETRICS_MS_SSIM_SIDE - height))
    ours, theirs = (F.pad(x / 255.0, missing, mode="replicate") for x in (reconstruction, image))
    values = multiscale_structural_similarity_index_measure(ours, theirs, data_range=1.0, sigma=1.5, reduction="none")
    return values.reshape(len(image))
