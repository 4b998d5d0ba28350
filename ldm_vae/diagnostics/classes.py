"""Where the images of each class lie in latent space: mean latents along the first two principal directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ldm_vae.data.shards.classes import CLASSES_FILE
from ldm_vae.data.shards.disk import read_file
from ldm_vae.data.shards.retry import Missing
from ldm_vae.diagnostics.explore import principal_directions
from ldm_vae.diagnostics.findings import Axis, Chart, FloatArray, Line
from ldm_vae.documents import DamagedFile, parse_json

CLASSES_SHOWN = 10  # the most frequent ones


def class_names(shards: str) -> list[str]:
    """The names in classes.json, which `ldm-vae shards` writes beside the shards; empty where there is no such file."""
    path = Path(shards).parent if shards.endswith(".tar") else Path(shards)
    try:
        names = parse_json(read_file(path / CLASSES_FILE), CLASSES_FILE, "")
    except (Missing, DamagedFile):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def scatter(means: FloatArray, classes: npt.NDArray[np.int64], names: list[str]) -> Chart | None:
    """A chart of the images' mean latents, or None where the means do not vary.

    means: (N, C), latent means of images.
    classes: (N,), the class of each image.
    names: names of the classes.
    """
    if len(means) < 3 or not np.ptp(means, axis=0).any():
        return None
    deviations, directions = principal_directions(np.atleast_2d(np.cov(means, rowvar=False)))
    places = (means - means.mean(axis=0)) @ directions.T
    numbers, counts = np.unique(classes, return_counts=True)
    frequent = sorted(numbers[np.argsort(-counts, kind="stable")][:CLASSES_SHOWN].tolist())
    lines = []
    for number in frequent:
        mine = places[classes == number]
        second = mine[:, 1] if mine.shape[1] > 1 else np.zeros(len(mine))
        label = names[number] if 0 <= number < len(names) else f"class {number}"
        lines.append(Line(label=label, x=tuple(mine[:, 0].tolist()), y=tuple(second.tolist())))
    rest = (
        ""
        if len(numbers) <= CLASSES_SHOWN
        else f" Shown are the {CLASSES_SHOWN} most frequent of {len(numbers)} classes."
    )
    share = 100 * deviations[:2] ** 2 / (deviations**2).sum()
    titles = [f"direction {i + 1} ({value:.0f} % of the variance)" for i, value in enumerate(share)] + ["(one channel)"]
    return Chart(
        name="class_scatter", title="Latent means of images by class", kind="scatter",
        definition=f"The latent of each image (of a Gaussian posterior its mean), averaged over positions, along the "
        f"first two principal directions of {len(means)} such means.{rest} Classes that lie apart differ in colour or "
        "brightness. A codec need not separate classes.",
        x=Axis(title=titles[0]), y=Axis(title=titles[1]), lines=tuple(lines),
    )  # fmt: skip
