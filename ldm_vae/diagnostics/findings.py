"""What `ldm-vae inspect` finds: numbers, curves, pictures and verdicts, each with what it means; and the file of them.

One shape for every diagnostic, so that the report shows a new one without knowing it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ldm_vae.atomic import atomic_file
from ldm_vae.errors import UserError
from ldm_vae.recipe import Config, validate

FILE = "inspection.json"
FOLDER = "inspection"  # of a run, where its inspection lies


def counted(number: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def gaps(values: Iterable[float]) -> tuple[float | None, ...]:
    """The y of a line: None where a value is not finite."""
    return tuple(float(value) if math.isfinite(value) else None for value in values)


class Finding(Config):
    """What any diagnostic says of itself."""

    name: str
    """Identifier, unique in its section: `kl_per_channel`."""

    title: str
    """Name for people: `KL per channel`."""

    definition: str
    """How it is computed, in a sentence."""

    source: str = ""
    """Paper or equation; empty where the definition is all there is."""


class Number(Finding):
    value: float | None
    """None where it can't be had."""

    unit: str = ""

    missing: str = ""
    """The reason where `value` is None."""


class Axis(Config):
    title: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"


class Line(Config):
    """One line, set of bars or cloud of points. x and y are equally long."""

    label: str

    x: tuple[float | str, ...]
    """Numbers, or words, which are categories."""

    y: tuple[float | None, ...]
    """None is a gap."""


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


class Picture(Finding):
    file: str
    """PNG, relative to the folder of the inspection."""

    description: str
    """What it shows, for people who cannot see it."""


class Verdict(Config):
    """What the numbers mean, and what to try."""

    name: str
    """Identifier: `fp16_overflow`."""

    level: Literal["good", "warning", "bad", "unknown"]

    statement: str
    """One sentence, with the number it rests on."""

    advice: str = ""
    """What to try; empty where all is good."""


class Section(Config):
    name: str
    title: str
    numbers: tuple[Number, ...] = ()
    charts: tuple[Chart, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    pictures: tuple[Picture, ...] = ()
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
        with atomic_file(folder / FILE) as stage:
            stage.write_text(json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")

    @staticmethod
    def read(folder: Path) -> Inspection:
        """Raises UserError where the file is missing or is no such file."""
        remedy = "make it with `ldm-vae inspect MODEL SHARDS`"
        try:
            content = json.loads((folder / FILE).read_bytes())
        except (OSError, ValueError):
            raise UserError(f"{folder / FILE} is missing or no inspection", remedy) from None
        if not isinstance(content, dict):
            raise UserError(f"{folder / FILE} is no inspection", remedy)
        return validate(Inspection, content, str(folder / FILE))
