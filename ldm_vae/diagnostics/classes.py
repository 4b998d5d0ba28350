"""Where the images of each class lie in latent space: their mean latents along the first two principal directions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ldm_vae.data.shards.pack import CLASSES_FILE
from ldm_vae.diagnostics.explore import principal_directions
from ldm_vae.diagnostics.findings import Axis, Chart, Line

CLASSES = 10  # shown, the most frequent ones
Array = npt.NDArray[np.float64]


def class_names(shards: str) -> list[str]:
    """classes.json beside local shards, as `ldm-vae shards` writes it; empty where there is none."""
    path = Path(shards).parent if shards.endswith(".tar") else Path(shards)
    try:
        names = json.loads((path / CLASSES_FILE).read_bytes())
    except (OSError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def scatter(means: Array, classes: npt.NDArray[np.int64], names: list[str]) -> Chart | None:
    """means: (N, C), latent means of images.   classes: (N,).   names: of classes.   None where means do not vary."""
    if len(means) < 3 or not np.ptp(means, axis=0).any():
        return None
    deviations, directions = principal_directions(np.atleast_2d(np.cov(means, rowvar=False)))
    places = (means - means.mean(axis=0)) @ directions.T
    numbers, counts = np.unique(classes, return_counts=True)
    frequent = sorted(numbers[np.argsort(-counts, kind="stable")][:CLASSES].tolist())
    lines = []
    for number in frequent:
        mine = places[classes == number]
        second = mine[:, 1] if mine.shape[1] > 1 else np.zeros(len(mine))
        label = names[number] if 0 <= number < len(names) else f"class {number}"
        lines.append(Line(label=label, x=tuple(mine[:, 0].tolist()), y=tuple(second.tolist())))
    rest = "" if len(numbers) <= CLASSES else f" The {CLASSES} most frequent of {len(numbers)} classes."
    share = 100 * deviations[:2] ** 2 / (deviations**2).sum()
    titles = [f"direction {i + 1} ({value:.0f} % of the variance)" for i, value in enumerate(share)] + ["(one channel)"]
    return Chart(
        name="class_scatter", title="Latent means of images by class", kind="scatter",
        definition=f"Each image's posterior mean, averaged over positions, along the first two principal directions "
        f"of {len(means)} such means.{rest} Classes that lie apart differ in colour or brightness; a codec is not "
        "asked to separate them.",
        x=Axis(title=titles[0]), y=Axis(title=titles[1]), lines=tuple(lines),
    )  # fmt: skip
