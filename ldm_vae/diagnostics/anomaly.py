"""How unusual each image is to the codec: two scores, and how well they tell two sets of images apart.

The scores are the reconstruction error and the negative evidence bound. For the bound the likelihood of a pixel is a
Gaussian around the reconstruction, whatever likelihood the codec was trained with. Its variance is the mean squared
error over the first set, the most likely single value (sigma-VAE: Rybkin et al. 2021, arXiv:2006.13202). A simple image
counts as usual whatever it shows, because it is easy to code (Serra et al. 2020, arXiv:1909.11480).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ldm_vae.diagnostics.findings import Axis, Chart, FloatArray, Line, Quantity, Section
from ldm_vae.extras import extra
from ldm_vae.printable import counted

SCORES_FILE = "scores.csv"
ROC_POINTS = 101  # points of a ROC curve at most
BARS = 20  # bars of a histogram
RYBKIN = "Rybkin et al. 2021, arXiv:2006.13202"
FAWCETT = "Fawcett 2006, doi:10.1016/j.patrec.2005.10.010"


@dataclass(frozen=True)
class Score:
    """The scores of one image.

    squared_error: mean over the values of the image, range [-1, 1], decoded from the posterior's mode.
    kl: nats per image; None where the posterior is no Gaussian, so that there is no evidence bound.
    values: number of values of the image, channels times pixels.
    """

    key: str
    squared_error: float
    kl: float | None
    values: int


def negative_elbo(scores: Sequence[Score], variance: float) -> FloatArray:
    """(N,), nats per value: squared error / (2 variance) + ln(2 pi variance) / 2 + KL / values. NaN without a KL."""
    constant = 0.5 * math.log(2 * math.pi * variance)
    kl = [math.nan if s.kl is None else s.kl for s in scores]
    return np.array(
        [0.5 * s.squared_error / variance + constant + nats / s.values for s, nats in zip(scores, kl, strict=True)]
    )


def auc(usual: FloatArray, unusual: FloatArray) -> float:
    """Probability that an image of the second set scores higher than one of the first; ties count half."""
    with extra("metrics"):
        from torchmetrics.functional.classification import binary_auroc
    return float(binary_auroc(*_ranked(usual, unusual)))


def roc(usual: FloatArray, unusual: FloatArray) -> tuple[FloatArray, FloatArray]:
    """False and true positive rates, at most ROC_POINTS of each."""
    with extra("metrics"):
        from torchmetrics.functional.classification import binary_roc
    false, true, _ = binary_roc(*_ranked(usual, unusual))
    chosen = np.unique(np.linspace(0, len(false) - 1, ROC_POINTS).round().astype(int))
    return false.numpy()[chosen], true.numpy()[chosen]


def write_scores(path: Path, sets: Sequence[tuple[str, Sequence[Score]]]) -> None:
    """Writes a CSV with one row for each image; within a set the highest error comes first.

    sets: name and scores of each set; the first set gives the variance.
    """
    variance = _variance(sets[0][1])
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # keys as they are
        writer = csv.writer(file)
        writer.writerow(["set", "key", "squared_error", "kl_nats", "negative_elbo_nats_per_value"])
        for name, scores in sets:
            bounded = variance > 0 and _have_bounds(scores)
            bounds = negative_elbo(scores, variance) if bounded else [""] * len(scores)
            rows = sorted(zip(scores, bounds, strict=True), key=lambda row: (-row[0].squared_error, row[0].key))
            writer.writerows([name, s.key, s.squared_error, s.kl, bound] for s, bound in rows)


def inspect_anomaly(scores: Sequence[Score], others: Sequence[Score] | None, against: str | None) -> Section:
    """scores: scores of the first set.
    others: scores of the second set; None where there is no second set.
    against: name of the second set.
    """
    title = "Anomaly scores"
    variance = _variance(scores)
    if not scores or not variance > 0:
        reason = "no image was reconstructed" if not scores else "every reconstruction equals its image"
        return Section(name="anomaly", title=title, numbers=tuple(_auc(n, None, reason) for n in ("error", "elbo")))
    kinds = {
        "error": (_errors(scores), None if not others else _errors(others)),
        "elbo": (negative_elbo(scores, variance), None if not others else negative_elbo(others, variance)),
    }
    if not _have_bounds(scores):
        del kinds["elbo"]
    missing = (
        "give a second set with --against SHARDS" if others is None else "no image of the second set was reconstructed"
    )
    numbers = [
        Quantity(
            name="negative_elbo", title="Negative evidence bound",
            value=float(kinds["elbo"][0].mean()) if "elbo" in kinds else None,
            missing="" if "elbo" in kinds else "this codec has no Gaussian posterior",
            unit="nats per value", source=RYBKIN,
            definition=f"Squared error / (2 v) + ln(2 pi v) / 2 + KL / values, mean over "
            f"{counted(len(scores), 'image')}: the likelihood of a pixel is a Gaussian around the reconstruction, "
            f"whatever likelihood the codec was trained with. v = {variance:.3g} is the mean squared error of these "
            "images, range [-1, 1], decoded from the posterior's mode.",
        )
    ]  # fmt: skip
    charts = []
    for name, (usual, unusual) in kinds.items():
        numbers.append(_auc(name, None if unusual is None else auc(usual, unusual), missing if unusual is None else ""))
        sets = {"these images": usual} | ({} if unusual is None else {str(against): unusual})
        charts.append(_histogram(name, sets))
    curves = {name: roc(usual, unusual) for name, (usual, unusual) in kinds.items() if unusual is not None}
    if curves:
        charts.append(
            Chart(
                name="roc", title="Telling the sets apart", kind="line", source=FAWCETT,
                definition=f"ROC curve: the shares of {against} (upwards) and of these images (to the right) above "
                "each threshold.",
                x=Axis(title="these images called unusual"), y=Axis(title="the others called unusual"),
                lines=tuple(
                    Line(label=_TITLES[name], x=tuple(x.tolist()), y=tuple(y.tolist()))
                    for name, (x, y) in curves.items()
                ),
            )
        )  # fmt: skip
    return Section(name="anomaly", title=title, numbers=tuple(numbers), charts=tuple(charts))


def _have_bounds(scores: Sequence[Score]) -> bool:
    return all(score.kl is not None for score in scores)


_TITLES = {"error": "reconstruction error", "elbo": "negative evidence bound"}


def _variance(scores: Sequence[Score]) -> float:
    return math.fsum(score.squared_error for score in scores) / len(scores) if scores else 0.0


def _errors(scores: Sequence[Score]) -> FloatArray:
    return np.array([score.squared_error for score in scores])


def _ranked(usual: FloatArray, unusual: FloatArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and classes as torchmetrics takes them.

    Scores become ranks in (0, 1]: torchmetrics squashes larger scores by a sigmoid in float32, and some become equal.
    """
    with extra("metrics"):
        from scipy.stats import rankdata
    ranks = rankdata(np.concatenate([usual, unusual])) / (len(usual) + len(unusual))
    classes = torch.tensor([0] * len(usual) + [1] * len(unusual))
    return torch.from_numpy(ranks), classes


def _auc(name: str, value: float | None, missing: str) -> Quantity:
    return Quantity(
        name=f"auc_{name}", title=f"Area under the ROC curve of the {_TITLES[name]}", value=value, missing=missing,
        source=FAWCETT,
        definition="Probability that an image of the second set scores higher than one of the first. 0.5 is chance; "
        "two halves of one set should have it.",
    )  # fmt: skip


def _histogram(name: str, sets: dict[str, FloatArray]) -> Chart:
    low, high = (float(f(np.concatenate(list(sets.values())))) for f in (np.min, np.max))
    edges = np.linspace(low, high if high > low else low + 1e-9, BARS + 1)
    middles = tuple(((edges[1:] + edges[:-1]) / 2).tolist())
    unit = "nats per value" if name == "elbo" else ""
    return Chart(
        name=f"{name}_histogram", title=f"Images by {_TITLES[name]}", kind="bar",
        definition=f"Share of the images of each set by score. {SCORES_FILE} has the score of every image.",
        x=Axis(title=_TITLES[name], unit=unit), y=Axis(title="images", unit="%"),
        lines=tuple(
            Line(label=label, x=middles, y=tuple((100 * np.histogram(values, edges)[0] / len(values)).tolist()))
            for label, values in sets.items()
        ),
    )  # fmt: skip
