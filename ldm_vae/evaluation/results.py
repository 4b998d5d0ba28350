"""The results of an evaluation: means over images, distances of sets, what is missing and why, and the protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Field

from ldm_vae.choices import (
    IMAGE_METRICS,
    SET_METRICS,
    USUAL_IMAGE_METRICS,
    USUAL_SET_METRICS,
    MetricName,
    SetMetricName,
)
from ldm_vae.data.images.fit import ImageConfig, describe_resize
from ldm_vae.errors import UserError
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage, psnr
from ldm_vae.metrics.pixels import Rounding
from ldm_vae.metrics.sets import FeatureSets, SetResults, describe_set_metrics
from ldm_vae.recipe import Config

BROKEN = "the reconstruction holds NaN or infinity"


class NoImageError(UserError):
    """There is no image to evaluate."""

    def __init__(self) -> None:
        super().__init__("no image to evaluate", "give shards that hold images")


class EvaluationProtocol(Config):
    """How images are prepared and what is measured; everything else is fixed."""

    image: ImageConfig = ImageConfig()
    """Channels, resize and crop of the images; crops are taken from the middle."""

    name: str = "ldm_vae"
    """What the protocol is called."""

    metrics: tuple[MetricName | SetMetricName, ...] = (*USUAL_IMAGE_METRICS, *USUAL_SET_METRICS)
    """What is measured; psnr_pooled comes with psnr."""

    latent: Literal["mode", "sample"] = "mode"
    """What of the posterior is decoded."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the samples; the noise of an image depends on seed and key alone."""

    rounding: dict[str, Rounding] = Field(default_factory=dict)
    """By name of a metric, the values that it compares; a metric that is not named compares the nearest 8-bit ones."""

    @property
    def image_metrics(self) -> tuple[MetricName, ...]:
        return tuple(name for name in IMAGE_METRICS if name in self.metrics)

    @property
    def set_metrics(self) -> tuple[SetMetricName, ...]:
        return tuple(name for name in SET_METRICS if name in self.metrics)


@dataclass(frozen=True)
class Results:
    """What an evaluation measured.

    metrics: by name, the mean over images or the distance of the two sets; None where there is none.
    missing: by name of such a metric, the reason.
    protocol: what one must know to compare the numbers.
    per_image: what was measured on each image, ordered by key.
    notes: by name of a metric, what one should know about its number.
    """

    metrics: dict[str, float | None]
    missing: dict[str, str]
    protocol: dict[str, Any]
    per_image: list[MeasuredImage]
    notes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"metrics": {...}, "missing": {...}, "notes": {...}, "protocol": {...}}; per_image is left out."""
        return {"metrics": self.metrics, "missing": self.missing, "notes": self.notes, "protocol": self.protocol}


def summarize(
    rows: Sequence[MeasuredImage],
    protocol: EvaluationProtocol,
    metrics: ImageMetrics,
    features: FeatureSets | None = None,
) -> Results:
    """Results from the rows of all processes. A metric that one image lacks is missing, with the reason.

    features: features for the set metrics; if there are any, all processes must call this.

    Raises NoImageError where there are no rows.
    """
    if not rows:
        raise NoImageError
    rows = sorted(rows, key=lambda row: row.key)
    sets = SetResults() if features is None else features.results(rows)
    values: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for name in (*protocol.image_metrics, *protocol.set_metrics):
        values[name] = None
        if lacking := [row for row in rows if name in row.missing]:
            missing[name] = _reason(lacking[0].missing[name], lacking, rows)
        elif name in IMAGE_METRICS:
            values[name] = math.fsum(row.values[name] for row in rows) / len(rows)
        if name == "psnr":
            values["psnr_pooled"] = _pooled_psnr(rows, missing)
    values.update(sets.values)
    missing |= sets.missing
    facts = _describe(rows, protocol) | _networks(metrics, features)
    return Results(values, missing, facts, rows, sets.notes)


def _pooled_psnr(rows: Sequence[MeasuredImage], missing: dict[str, str]) -> float | None:
    """PSNR of the mean squared error over all values of all images; large images have more weight."""
    errors = [row.squared_error for row in rows if row.squared_error is not None]
    if lacking := [row for row in rows if row.squared_error is None]:
        missing["psnr_pooled"] = _reason(BROKEN, lacking, rows)
    elif sum(errors) == 0:
        missing["psnr_pooled"] = "it is infinite, because every reconstruction equals its image"
    else:
        return float(psnr(sum(errors), sum(row.elements for row in rows)))
    return None


def _reason(reason: str, lacking: Sequence[MeasuredImage], rows: Sequence[MeasuredImage]) -> str:
    return f"{reason} ({len(lacking)} of {len(rows)} images, the first {lacking[0].key})"


def _describe(rows: Sequence[MeasuredImage], protocol: EvaluationProtocol) -> dict[str, Any]:
    image = protocol.image
    return {
        "protocol": protocol.name,
        "images": len(rows),
        "resize": describe_resize(image),
        "crop": "none" if image.crop is None else f"center {image.crop}",
        "padding": "to a multiple of f, cropped back",
        "latent": "mode" if protocol.latent == "mode" else f"sample, noise from seed {protocol.seed} and key",
        "rounding": _describe_rounding(protocol),
        "average": "mean over images; psnr_pooled: over all values",
        **describe_set_metrics(protocol.set_metrics, len(rows)),
        "torch": version("torch"),
        "torchmetrics": version("torchmetrics"),
        "torch-fidelity": version("torch-fidelity"),
    }


def _describe_rounding(protocol: EvaluationProtocol) -> str:
    usual = "clamped to [-1, 1] and rounded to 8 bits, reconstruction and original alike"
    if not protocol.rounding:
        return usual
    metrics = (*protocol.image_metrics, *protocol.set_metrics)
    words = (f"{name} {protocol.rounding.get(name, 'nearest')}" for name in metrics)
    return f"{', '.join(words)} (see ldm_vae/metrics/pixels.py), reconstruction and original alike"


def _networks(metrics: ImageMetrics, features: FeatureSets | None) -> dict[str, dict[str, str]]:
    """The sha256 of the weights of each metric that uses a network."""
    weights = {} if features is None else features.metrics.weights
    for name, metric in metrics.metrics.items():
        if metric.network is not None:
            weights[name] = metric.network.weights
    return {"metric_weights": weights}
