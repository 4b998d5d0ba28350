"""Prepares an inspection for the page: verdicts first, then numbers, charts, matrices and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_vae.diagnostics.findings import Inspection, Matrix, PictureFile, Quantity, Section, Verdict
from ldm_vae.report.charts import Drawing, draw
from ldm_vae.report.numbers import short
from ldm_vae.report.pictures import data_uri, diverging_map
from ldm_vae.system import NO_FILE, system_error

LEVEL_SIGNS = {"bad": ("✕", "Bad"), "warning": ("!", "Warning"), "unknown": ("?", "Unknown"), "good": ("✓", "Good")}
FIRST = "reconstruction"  # the section whose verdicts come first
CELLS = 12  # rows or columns; a matrix with more is shown as a picture, not as a table of numbers
DIAGNOSIS_BYTES = 2_500_000  # bytes that all pictures of the inspection have in the page at most
SMALLEST_SIDE = 64  # px, of a picture that is made smaller to fit
LARGEST_PICTURE = 2**26  # pixels; a larger picture is taken for a decompression bomb


@dataclass(frozen=True)
class ShownVerdict:
    """A verdict as the page shows it.

    place: index of its section.
    """

    verdict: Verdict
    icon: str
    word: str
    section: Section
    place: int


@dataclass(frozen=True)
class ShownMatrix:
    """A matrix as the page shows it.

    cells: rows of cells, each a text and a background colour.
    uri: a picture instead of the cells, where there are too many.
    low, high: smallest and largest value.
    limit: absolute value that has the full colour.
    """

    matrix: Matrix
    cells: list[list[tuple[str, str]]]
    uri: str
    low: str
    high: str
    limit: str


@dataclass(frozen=True)
class ShownPicture:
    """A picture as the page shows it.

    uri: empty where the picture cannot be shown; `note` then says why.
    """

    picture: PictureFile
    uri: str
    width: int
    height: int
    note: str


@dataclass(frozen=True)
class ShownSection:
    """A section as the page shows it; each number has its text."""

    section: Section
    numbers: list[tuple[Quantity, str]]
    charts: list[Drawing]
    matrices: list[ShownMatrix]
    pictures: list[ShownPicture]


def verdicts(inspection: Inspection) -> list[ShownVerdict]:
    """All verdicts, the worst first; but first of all whether reconstruction is any good."""
    order = list(LEVEL_SIGNS)
    shown = [
        ShownVerdict(verdict, *LEVEL_SIGNS[verdict.level], section, place)
        for place, section in enumerate(inspection.sections)
        for verdict in section.verdicts
    ]
    return sorted(shown, key=lambda one: (one.section.name != FIRST, order.index(one.verdict.level)))


def count_verdicts(shown: Iterable[ShownVerdict]) -> list[tuple[str, str, str, int]]:
    """Level, icon, word and number of verdicts, the worst level first; levels without verdicts are left out."""
    counts = Counter(item.verdict.level for item in shown)
    return [(level, *LEVEL_SIGNS[level], counts[level]) for level in LEVEL_SIGNS if counts[level]]  # type: ignore[index]


def sections(inspection: Inspection, folder: Path) -> list[ShownSection]:
    """folder: the folder that holds the pictures."""
    left = DIAGNOSIS_BYTES
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
    elif values.size <= LARGEST_PICTURE:
        uri = data_uri(diverging_map(np.nan_to_num(values), limit))
    return ShownMatrix(matrix, cells, uri, short(low, 3), short(high, 3), short(limit, 3))


def _tint(value: float, limit: float) -> str:
    """A background colour: red above zero, blue below, pale enough to read the number on it."""
    share = abs(value) / limit if limit and np.isfinite(value) else 0.0
    return f"rgb({'200 60 40' if value > 0 else '40 90 200'} / {0.32 * share:.3f})"


def _picture(picture: PictureFile, folder: Path, left: int) -> ShownPicture:
    path = (folder / picture.file).resolve()
    if not path.is_relative_to(folder.resolve()):
        return ShownPicture(picture, "", 0, 0, f"{picture.file} lies outside the folder of the inspection")
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            if opened.width * opened.height > LARGEST_PICTURE:
                return ShownPicture(picture, "", 0, 0, f"{picture.file} is too large")
            image = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        if not isinstance(error, NO_FILE) and system_error(error, path) is not None:
            raise
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is no PNG that can be read"
        return ShownPicture(picture, "", 0, 0, f"{picture.file} {reason}")
    shrink = 1
    while len(uri := data_uri(image)) > left:
        shrink *= 2
        if min(image.size) // 2 < SMALLEST_SIDE:
            return ShownPicture(picture, "", 0, 0, f"{picture.file} is left out, so that the file stays small")
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    note = "" if shrink == 1 else f"at 1/{shrink} of its size, so that the file stays small"
    return ShownPicture(picture, uri, image.width, image.height, note)
