"""The types of what `ldm-vae inspect` finds: numbers, charts, matrices, pictures and verdicts; and their file.

All diagnostics use these types, so the report shows a new diagnostic without a change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ldm_vae.atomic import atomic_file
from ldm_vae.documents import LARGE, read_json
from ldm_vae.errors import UserError
from ldm_vae.recipe import Config, validate

FloatArray = npt.NDArray[np.float64]  # what the diagnostics compute with
INSPECTION_FILE = "inspection.json"
IMAGES_INSPECTED = 256  # unless another number is asked for
INSPECTION_FOLDER = "inspection"  # the folder in a run that holds its inspection


def gaps(values: Iterable[float]) -> tuple[float | None, ...]:
    """The values as the y of a line: None, which is a gap, where a value is not finite."""
    return tuple(float(value) if math.isfinite(value) else None for value in values)


class Finding(Config):
    """What a number, a chart, a matrix and a picture have in common."""

    name: str
    """Identifier, unique in its section: `kl_per_channel`."""

    title: str
    """Name for people: `KL per channel`."""

    definition: str
    """How it is computed, in a sentence."""

    source: str = ""
    """Paper or equation; empty where the definition is all there is."""


class Quantity(Finding):
    """A number with its unit, or the reason why there is none."""

    value: float | None
    """None where it cannot be measured."""

    unit: str = ""

    missing: str = ""
    """The reason where `value` is None."""


class Axis(Config):
    title: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"


class Line(Config):
    """One line, one set of bars or one cloud of points. x and y have the same length."""

    label: str

    x: tuple[float | str, ...]
    """Numbers, or the names of categories."""

    y: tuple[float | None, ...]
    """The values; None leaves a gap."""


class Chart(Finding):
    kind: Literal["line", "bar", "scatter"]
    x: Axis
    y: Axis
    lines: tuple[Line, ...]


class Matrix(Finding):
    """A table of numbers shown as colours, such as a covariance."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    unit: str = ""


class Table(Finding):
    """Numbers side by side, such as those of several codecs."""

    columns: tuple[str, ...]
    """Headings, of the names of rows first."""

    rows: tuple[tuple[str, ...], ...]
    """Cells as they are shown, the name of the row first; empty where there is no number."""

    notes: tuple[str, ...] = ()
    """What stands below it."""


class PictureFile(Finding):
    file: str
    """Path of the PNG, relative to the folder of the inspection."""

    description: str
    """What it shows, for people who cannot see it."""


class Verdict(Config):
    """What the numbers of a section mean, and what to try."""

    name: str
    """Identifier: `fp16_overflow`."""

    level: Literal["good", "warning", "bad", "unknown"]

    statement: str
    """One sentence with the number that decides."""

    advice: str = ""
    """What to try; empty where nothing is wrong."""


def graded_verdict(name: str, value: float, good: float, warning: float, statement: str, advice: str) -> Verdict:
    """The verdict on a value that should be small: good up to `good`, a warning up to `warning`, bad above it.

    A good verdict gives no advice.
    """
    if value <= good:
        return Verdict(name=name, level="good", statement=statement)
    return Verdict(name=name, level="warning" if value <= warning else "bad", statement=statement, advice=advice)


class Section(Config):
    """Everything that one diagnostic found.

    name: identifier, such as `channels`.
    title: heading for people.
    """

    name: str
    title: str
    numbers: tuple[Quantity, ...] = ()
    charts: tuple[Chart, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[PictureFile, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


class Inspection(Config):
    """The file `inspection.json`; pictures lie beside it."""

    format: Literal["ldm_vae.inspection"] = "ldm_vae.inspection"

    version: Literal[1] = 1

    protocol: dict[str, Any]
    """How it was made: model, weights_sha256, precision, shards, images, resize, crop."""

    sections: tuple[Section, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(verdict for section in self.sections for verdict in section.verdicts)

    def write(self, folder: Path) -> None:
        with atomic_file(folder / INSPECTION_FILE) as stage:
            stage.write_text(json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")

    @staticmethod
    def read(folder: Path) -> Inspection:
        """Raises UserError where the file is missing, or is no inspection."""
        remedy = "make it with `ldm-vae inspect MODEL SHARDS`"
        try:
            content = read_json(folder / INSPECTION_FILE, remedy, largest=LARGE, names=True)
        except FileNotFoundError:
            raise UserError(f"{folder / INSPECTION_FILE} is missing", remedy) from None
        return validate(Inspection, content, str(folder / INSPECTION_FILE))
