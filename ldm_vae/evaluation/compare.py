"""Two codecs on the same images: differences image by image, with an interval that tells a gain from noise.

Images differ far more than codecs do, so two means say little; the differences of pairs do. The interval is a paired
bootstrap's: images are drawn again with replacement, each with both of its values, and the mean difference is taken
(Efron 1979), 95 % of them by percentiles.
Check: tests/evaluation/test_compare.py, against Student's t and by coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from ldm_vae.errors import UserError
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.metrics.image import IMAGE_METRICS, MeasuredImage

LEVEL = 0.95
FEW = 20  # images; of fewer, the interval holds the truth less often than it says: of 10 in 89 %, of 3 in 74 %
RESAMPLES = 4000
BLOCK = 2**22  # resampled values in memory at a time


@dataclass(frozen=True)
class Difference:
    """difference: mean over images of first minus other.   low, high: its interval; None for one image.   images: n."""

    difference: float
    low: float | None
    high: float | None
    images: int

    def verdict(self, metric: str) -> str:
        """What it says of the first codec: gain, loss, or noise where the interval holds 0."""
        if self.low is None or self.high is None or self.images < FEW:
            return "too few images"
        if self.low <= 0 <= self.high:
            return "noise"
        return "gain" if (self.difference > 0) == (describe_metric(metric).better == "higher") else "loss"


def compare(first: Sequence[MeasuredImage], other: Sequence[MeasuredImage], *, seed: int = 0) -> dict[str, Difference]:
    """By metric, over the images that have it from both codecs; a metric that no image has is left out.

    first, other: ordered by key.   seed: of the images drawn.   Raises UserError where these are not the same images.
    """
    images, others = ([(row.key, row.shape) for row in rows] for rows in (first, other))
    if images != others:
        odd = next(iter(set(images) ^ set(others)), images[0])[0]
        raise UserError("the codecs were measured on different images", f"compare on the same ones ({odd} differs)")
    found: dict[str, Difference] = {}
    for metric in IMAGE_METRICS:
        pairs = [(a.values[metric], b.values[metric]) for a, b in zip(first, other, strict=True) if _both(a, b, metric)]
        if pairs:
            found[metric] = _difference(np.array([ours - theirs for ours, theirs in pairs]), seed)
    return found


def to_json(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """With the verdict, so that whoever reads it need not know what it takes."""
    return {metric: {**asdict(found), "verdict": found.verdict(metric)} for metric, found in differences.items()}


def _both(first: MeasuredImage, other: MeasuredImage, metric: str) -> bool:
    return metric in first.values and metric in other.values


def _difference(differences: np.ndarray[Any, np.dtype[np.float64]], seed: int) -> Difference:
    n = len(differences)
    low: float | None = None
    high: float | None = None
    if n > 1:
        interval = bootstrap(
            (differences,),
            np.mean,
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            batch=max(1, BLOCK // n),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Difference(float(differences.mean()), low, high, n)
