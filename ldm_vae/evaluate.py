"""A codec and images -> numbers, with the protocol they were taken under.

Published numbers for one autoencoder differ by 2 dB, because resize, crop, rounding and sampling differ. So the
protocol is part of the result: reconstruction from the posterior's mode, clamped and rounded to 8 bits like the
original, at the original size, means over images.

On several processes each measures its own images and the rows are gathered; `summarize` gives the same numbers for the
same rows in any order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import compress
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_vae.codec import NonFiniteError
from ldm_vae.data.batch import Batch
from ldm_vae.data.images import ImageConfig, to_uint8
from ldm_vae.data.index import SourceConfig, load_index
from ldm_vae.data.reader import DataConfig, validation_batches
from ldm_vae.errors import UserError
from ldm_vae.metrics.image import METRICS, ImageMetrics, MetricName, Row, psnr
from ldm_vae.ranks import gather, rank_and_world
from ldm_vae.recipe import Config

logger = logging.getLogger(__name__)

BROKEN = "the reconstruction holds NaN or infinity"


class Codec(Protocol):
    """What can be evaluated: `LatentCodec`, or any other way from images to fewer numbers and back."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], any size -> latents, nothing in them drawn at random."""

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Latents -> (B, C, H, W), unclamped.   size: (H, W) of the images."""


class EvaluationProtocol(Config):
    """How images are prepared and what is measured; everything else is fixed."""

    image: ImageConfig = ImageConfig()  # channels, resize and crop, from the middle; as they are without
    metrics: tuple[MetricName, ...] = METRICS  # what is measured on each image; psnr_pooled comes with psnr


@dataclass(frozen=True)
class Results:
    """metrics: name -> mean over images, None where it can't be had.   missing: for those, the reason.
    protocol: what one must know to compare.   per_image: a row an image, ordered by key."""

    metrics: dict[str, float | None]
    missing: dict[str, str]
    protocol: dict[str, Any]
    per_image: list[Row]

    def to_json(self) -> dict[str, Any]:
        """{"metrics": {...}, "protocol": {...}}, and the reasons for what is null among the metrics."""
        return {"metrics": self.metrics, "missing": self.missing, "protocol": self.protocol}


def evaluate(codec: Codec, batches: Iterable[Batch], protocol: EvaluationProtocol | None = None) -> Results:
    """Encode, decode and measure every image. Memory is that of one batch.

    batches: images as `protocol` wants them, of one size within a batch.   Raises UserError where there is no image.
    """
    protocol = protocol or EvaluationProtocol()
    metrics = ImageMetrics(protocol.metrics, codec.device)
    return summarize(measure(codec, batches, metrics), protocol, metrics)


def evaluate_shards(
    codec: Codec,
    shards: str,
    protocol: EvaluationProtocol | None = None,
    *,
    batch: int = 8,
    done: Callable[[int, int], None] = lambda images, total: None,
) -> Results:
    """`evaluate` on every image of some shards, shared out to the processes; the same results on each.

    shards: folder, glob, brace pattern or URL.   batch: images at once on each process, where equal in size.
    done(images, total): called for every batch with what this process has done of its share.
    Broken images are left out, with a warning that counts them; the protocol counts them, too.
    """
    protocol = protocol or EvaluationProtocol()
    index = load_index(shards)
    rank, world = rank_and_world()
    config = DataConfig(
        train=(SourceConfig(shards=shards),),
        batch=batch,
        workers=0 if codec.device.type == "cpu" else 4,  # the CPU is busy with the networks
        image=protocol.image,
        broken_budget=index.samples,
    )
    stream = validation_batches(config, index, batch=batch, rank=rank, world=world)

    def counted() -> Iterator[Batch]:
        for found in stream:
            yield found
            done(len(found.key), len(range(rank, index.samples, world)))

    metrics = ImageMetrics(protocol.metrics, codec.device)
    parts = gather((measure(codec, counted(), metrics), stream.faults))
    rows = [row for found, _ in parts for row in found]
    faults = [fault for _, found in parts for fault in found]
    if faults:
        broken = f"{len(faults)} of {index.samples} images, the first {faults[0].key} ({faults[0].reason})"
        if not rows:
            raise UserError(f"{shards} has no image for this codec and protocol", f"broken are {broken}")
        if rank == 0:
            logger.warning("left out %s", broken)
    results = summarize(rows, protocol, metrics)
    return replace(results, protocol={"shards": shards, "left_out": len(faults), **results.protocol})


def measure(codec: Codec, batches: Iterable[Batch], metrics: ImageMetrics) -> list[Row]:
    """The rows of this process's images."""
    rows = []
    for batch in batches:
        image = batch.image.to(codec.device)
        whole, reconstruction = _reconstruct(codec, image)
        if whole:
            rows += metrics(to_uint8(reconstruction), to_uint8(image[whole]), [batch.key[i] for i in whole])
        broken = sorted(set(range(len(image))) - set(whole))
        rows += [metrics.without_reconstruction(image[i], batch.key[i], BROKEN) for i in broken]
    return rows


def _reconstruct(codec: Codec, image: Tensor) -> tuple[list[int], Tensor]:
    """The places in the batch of the images that have a finite reconstruction, and those reconstructions."""
    places = list(range(len(image)))
    while places:
        try:
            reconstruction = codec.decode(codec.encode(image[places]), size=(image.shape[2], image.shape[3]))
        except NonFiniteError as error:
            places = [place for i, place in enumerate(places) if i not in error.samples]
            continue
        finite = reconstruction.isfinite().flatten(1).all(dim=1).tolist()
        return list(compress(places, finite)), reconstruction[finite]
    return [], image[:0]


def summarize(rows: Sequence[Row], protocol: EvaluationProtocol, metrics: ImageMetrics) -> Results:
    """The rows of all processes -> their means. One image without a metric leaves its mean missing, with the reason."""
    if not rows:
        raise UserError("no image to evaluate", "give shards that hold images")
    rows = sorted(rows, key=lambda row: row.key)
    values: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for name in protocol.metrics:
        values[name] = None
        if lacking := [row for row in rows if name in row.missing]:
            missing[name] = _reason(lacking[0].missing[name], lacking, rows)
        else:
            values[name] = math.fsum(row.values[name] for row in rows) / len(rows)
        if name == "psnr":
            values["psnr_pooled"] = _pooled_psnr(rows, missing)
    return Results(values, missing, _describe(rows, protocol, metrics), rows)


def _pooled_psnr(rows: Sequence[Row], missing: dict[str, str]) -> float | None:
    """PSNR of the mean squared error over all values of all images; large images weigh more."""
    errors = [row.squared_error for row in rows if row.squared_error is not None]
    if lacking := [row for row in rows if row.squared_error is None]:
        missing["psnr_pooled"] = _reason(BROKEN, lacking, rows)
    elif sum(errors) == 0:
        missing["psnr_pooled"] = "is infinite, because every reconstruction equals its image"
    else:
        return float(psnr(sum(errors), sum(row.elements for row in rows)))
    return None


def _reason(reason: str, lacking: Sequence[Row], rows: Sequence[Row]) -> str:
    return f"{reason} ({len(lacking)} of {len(rows)} images, the first {lacking[0].key})"


def _describe(rows: Sequence[Row], protocol: EvaluationProtocol, metrics: ImageMetrics) -> dict[str, Any]:
    image = protocol.image
    resize = f"short side {image.resize}, {image.resize_filter}, antialias"
    return {
        "images": len(rows),
        "resize": "none" if image.resize is None else resize,
        "crop": "none" if image.crop is None else f"center {image.crop}",
        "padding": "to a multiple of f, cropped back",
        "latent": "mode",
        "rounding": "clamped to [-1, 1] and rounded to 8 bits, reconstruction and original alike",
        "average": "mean over images; psnr_pooled: over all values",
        "torch": version("torch"),
        "torchmetrics": version("torchmetrics"),
        "metric_weights": {name: m.weights for name, m in metrics.metrics.items() if m.weights is not None},
    }
