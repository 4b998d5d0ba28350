"""An inspection -> what the page shows of it: verdicts first, then numbers, charts, matrices, pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_vae.diagnostics.findings import Inspection, Matrix, Number, Picture, Section, Verdict
from ldm_vae.report.charts import Drawing, draw
from ldm_vae.report.numbers import short
from ldm_vae.report.pictures import data_uri, diverging_map

LEVELS = {"bad": ("✕", "Bad"), "warning": ("!", "Warning"), "unknown": ("?", "Unknown"), "good": ("✓", "Good")}
CELLS = 12  # rows or columns up to which a matrix is a table of numbers; larger ones are pictures
BYTES = 2_500_000  # of all pictures of the inspection, as they stand in the page
SMALLEST = 64  # px, of a picture that is made smaller to fit
LARGEST = 2**26  # pixels of a picture; more is taken for a bomb


@dataclass(frozen=True)
class ShownVerdict:
    """place: of its section among the others."""

    verdict: Verdict
    icon: str
    word: str
    section: Section
    place: int


@dataclass(frozen=True)
class ShownMatrix:
    """cells: rows of text and background colour.   uri: instead of cells, where there are too many."""

    matrix: Matrix
    cells: list[list[tuple[str, str]]]
    uri: str
    low: str
    high: str
    limit: str


@dataclass(frozen=True)
class ShownPicture:
    """uri: empty where the picture can't be shown, for the reason in `note`."""

    picture: Picture
    uri: str
    width: int
    height: int
    note: str


@dataclass(frozen=True)
class ShownSection:
    section: Section
    numbers: list[tuple[Number, str]]
    charts: list[Drawing]
    matrices: list[ShownMatrix]
    pictures: list[ShownPicture]


def verdicts(inspection: Inspection) -> list[ShownVerdict]:
    """The worst first."""
    order = list(LEVELS)
    found = [
        ShownVerdict(verdict, *LEVELS[verdict.level], section, place)
        for place, section in enumerate(inspection.sections)
        for verdict in section.verdicts
    ]
    return sorted(found, key=lambda shown: order.index(shown.verdict.level))


def count_verdicts(shown: Iterable[ShownVerdict]) -> list[tuple[str, str, str, int]]:
    """Level, icon, word and how many, the worst first; levels that nothing has are left out."""
    counts = Counter(item.verdict.level for item in shown)
    return [(level, *LEVELS[level], counts[level]) for level in LEVELS if counts[level]]  # type: ignore[index]


def sections(inspection: Inspection, folder: Path) -> list[ShownSection]:
    """folder: where the pictures lie."""
    left = BYTES
    shown = []
    for place, section in enumerate(inspection.sections):
        drawings = [draw(chart, f"diagnosis-{place}-{i}") for i, chart in enumerate(section.charts)]
        pictures = []
        for picture in section.pictures:
            pictures.append(_picture(picture, folder, left))
            left -= len(pictures[-1].uri)
        shown.append(
            ShownSection(
                section,
                [(number, "–" if number.value is None else short(number.value)) for number in section.numbers],
                [drawing for drawing in drawings if drawing is not None],
                [_matrix(matrix) for matrix in section.matrices],
                pictures,
            )
        )
    return shown


def _matrix(matrix: Matrix) -> ShownMatrix:
    values = np.array(matrix.values, dtype=np.float64).reshape(len(matrix.values), -1)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    limit = max(abs(low), abs(high))
    cells, uri = [], ""
    if max(values.shape) <= CELLS:
        cells = [[(short(value, 3), _tint(value, limit)) for value in row] for row in matrix.values]
    elif values.size <= LARGEST:
        uri = data_uri(diverging_map(np.nan_to_num(values), limit))
    return ShownMatrix(matrix, cells, uri, short(low, 3), short(high, 3), short(limit, 3))


def _tint(value: float, limit: float) -> str:
    """Red above zero, blue below, weak enough that the number over it can be read."""
    share = abs(value) / limit if limit and np.isfinite(value) else 0.0
    return f"rgb({'200 60 40' if value > 0 else '40 90 200'} / {0.32 * share:.3f})"


def _picture(picture: Picture, folder: Path, left: int) -> ShownPicture:
    path = (folder / picture.file).resolve()
    if not path.is_relative_to(folder.resolve()):
        return ShownPicture(picture, "", 0, 0, f"{picture.file} lies outside of the inspection's folder")
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            if opened.width * opened.height > LARGEST:
                return ShownPicture(picture, "", 0, 0, f"{picture.file} is too large")
            image = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is no PNG that can be read"
        return ShownPicture(picture, "", 0, 0, f"{picture.file} {reason}")
    shrink = 1
    while len(uri := data_uri(image)) > left:
        shrink *= 2
        if min(image.size) // 2 < SMALLEST:
            return ShownPicture(picture, "", 0, 0, f"{picture.file} is left out, so that the file stays small")
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    note = "" if shrink == 1 else f"at 1/{shrink} of its size, so that the file stays small"
    return ShownPicture(picture, uri, image.width, image.height, note)
