"""What averaging and PCA make of the images that the codec reconstructs, and how far each is from them.

The images are those of the survey, and so are the codec's reconstructions: none is made for this. PSNR is measured on
all images. SSIM and LPIPS are measured on a few, because LPIPS' network costs more than a small codec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm_vae.choices import MetricName
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.stream.batch import Batch
from ldm_vae.diagnostics.sample import BoundedSample
from ldm_vae.evaluation.averaging import PatchAveraging
from ldm_vae.evaluation.pca import PatchPCA, PatchSums
from ldm_vae.fitting import Single
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.pixels import ImagePairs
from ldm_vae.overlap import Finish, begin, one_behind
from ldm_vae.transfer import Courier

CODEC, AVERAGING, PCA = "codec", "averaging", "pca"
MIDDLES = "middles"  # of an image and of what codecs make of it, (1 + codecs, C, h, w), of 8 bits
SAMPLED = (4, 16)  # images on which SSIM and LPIPS are measured, at least and at most
SAMPLED_SHARE = 1 / 16  # of the inspected images; one image costs as much as two or three of a small codec
SAMPLED_SIDE = 256  # pixels; of larger ones the middle is measured
SAMPLED_METRICS: tuple[MetricName, ...] = ("ssim", "lpips_vgg")


class CrossFittedPCA:
    """PCA of the inspected images themselves: each image is coded by a PCA that was fitted on the other half of them.

    So no image is coded by what was learned from it, and no other images are needed.
    """

    def __init__(self, codec: LatentCodec) -> None:
        """codec: PCA gets its f and its numbers at a position."""
        self._codec = codec
        self._sums = PatchSums(codec.factor), PatchSums(codec.factor)
        self._half: dict[str, int] = {}  # key -> the half that the image is in; equal keys are in one half
        self._fitted: dict[int, PatchPCA] = {}

    def add(self, batch: Batch) -> None:
        """Fits on images; every other one goes into the same half."""
        for i, key in enumerate(batch.key):
            half = self._half.setdefault(key, len(self._half) % 2)
            self._sums[half].add(batch.image[i : i + 1])

    def reconstruct(self, images: Tensor, keys: Sequence[str]) -> Tensor | None:
        """(B, C, H, W) -> the same shape; None where one half has no image.

        keys: names of images that were added.
        """
        if not all(sums.images for sums in self._sums):
            return None
        size = (images.shape[2], images.shape[3])
        decoded = []
        for image, key in zip(torch.split(images, 1), keys, strict=True):
            pca = self._other(self._half.get(key, 0))  # one that could not be read then is in no half
            decoded.append(pca.decode(pca.encode(image), size=size))
        return torch.cat(decoded)

    def _other(self, half: int) -> PatchPCA:
        if half not in self._fitted:
            fitted = self._sums[1 - half].fit(self._codec.latent_channels)
            self._fitted[half] = fitted.to(self._codec.device)
        return self._fitted[half]


class Comparison:
    """The measurements of the codec and of the simple ones on the same images.

    rows: name of a codec -> what was measured on each image, in the order of the images.
    sampled: number of images with SSIM and LPIPS.
    """

    def __init__(self, codec: LatentCodec, pca: CrossFittedPCA, images: int, seed: int) -> None:
        """images: how many will come."""
        self.rows: dict[str, list[MeasuredImage]] = {CODEC: [], AVERAGING: [], PCA: []}
        self._averaging = PatchAveraging(codec.factor, codec.device)
        self._pca = pca
        self._psnr = ImageMetrics(("psnr",), codec.device)
        least, most = SAMPLED
        self._sample = BoundedSample(min(max(least, round(images * SAMPLED_SHARE)), most), seed, "compared images")
        self._device = codec.device

    def compared(
        self, keys: Sequence[str], images: Tensor, reconstructions: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
        """What `add` takes of some images: tensors on their device; and of each codec, why a metric has no value.

        images, reconstructions: (B, C, H, W), floats; the reconstructions are finite.
        """
        size = (images.shape[2], images.shape[3])
        decoded = {
            CODEC: reconstructions,
            AVERAGING: self._averaging.decode(self._averaging.encode(images), size=size),
            PCA: self._pca.reconstruct(images, keys),
        }
        pictures = {name: to_uint8(x) for name, x in decoded.items() if x is not None}
        original = to_uint8(images)
        tensors, missing = {MIDDLES: torch.stack([_middle(x) for x in (original, *pictures.values())], dim=1)}, {}
        for name, picture in pictures.items():
            values, missing[name] = self._psnr.measured(ImagePairs(picture, original))
            tensors |= {f"{name} {metric}": value for metric, value in values.items()}
        return tensors, missing

    def add(
        self,
        keys: Sequence[str],
        shape: tuple[int, ...],
        tensors: Mapping[str, Tensor],
        missing: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Adds what `compared` gave of images of one shape, on the host."""
        first = len(self.rows[CODEC])
        for name, reasons in missing.items():
            values = {key.removeprefix(f"{name} "): x for key, x in tensors.items() if key.startswith(f"{name} ")}
            self.rows[name] += self._psnr.rows(keys, shape, values, reasons)
        offered = np.empty(len(keys), dtype=object)
        for i, middles in enumerate(tensors[MIDDLES]):
            offered[i] = first + i, middles.clone()  # else one image would keep the memory of all
        self._sample.offer(offered)

    @property
    def sampled(self) -> int:
        return len(self._sample)

    def measure_sample(self, done: Callable[[int, int], None]) -> None:
        """Adds SSIM and LPIPS to the rows of the sampled images.

        done(images, total): called after each image.
        """
        done(0, self.sampled)
        measure, courier = ImageMetrics(SAMPLED_METRICS, self._device), Courier(self._device)

        def launch(single: Single[tuple[int, Tensor]]) -> Finish[tuple[int, list[MeasuredImage]]]:
            place, pictures = single.item
            brought = courier.bring(pictures)
            decoded = brought[1:]
            pairs = ImagePairs(decoded, brought[:1].expand_as(decoded))  # LPIPS looks at the image once
            finish = begin(lambda: measure.measured(pairs), self._device)
            return lambda: (place, measure.rows([""] * len(decoded), tuple(decoded.shape[1:]), *finish()))

        sample = [] if self._sample.rows is None else list(self._sample.rows)
        singles = (Single((place, pictures), tuple(pictures.shape[1:])) for place, pictures in sample)
        for place, measured in one_behind(singles, launch, self._device):
            for rows, one in zip((rows for rows in self.rows.values() if rows), measured, strict=True):
                rows[place].values |= {name: one.values[name] for name in SAMPLED_METRICS if name in one.values}
                rows[place].missing |= {name: one.missing[name] for name in SAMPLED_METRICS if name in one.missing}
            done(1, self.sampled)


def _middle(images: Tensor) -> Tensor:
    """(B, C, H, W) -> the middle of each, at most SAMPLED_SIDE pixels a side."""
    height, width = images.shape[2:]
    rows, columns = min(height, SAMPLED_SIDE), min(width, SAMPLED_SIDE)
    top, left = (height - rows) // 2, (width - columns) // 2
    return images[:, :, top : top + rows, left : left + columns]
