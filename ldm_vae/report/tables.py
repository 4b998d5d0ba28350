"""Results of one run or several -> the tables of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm_vae.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription, describe_metric
from ldm_vae.report.diagnosis import count_verdicts, verdicts
from ldm_vae.report.gallery import worst_first
from ldm_vae.report.numbers import short, signed
from ldm_vae.report.results import ImageRow, Interval, Measured, StoredResults
from ldm_vae.report.run import RunFolder, leaves

IMAGES = 500  # rows of the table of images, the worst
REASONS = 20  # notes under it
WHERE = ("output",)  # settings in which two runs always differ
WORDS = {"gain": "better", "loss": "worse", "noise": "within chance"}  # verdicts on this codec


@dataclass(frozen=True)
class Cell:
    """best: of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class MetricRow:
    metric: MetricDescription
    cells: list[Cell]


@dataclass(frozen=True)
class MetricTable:
    """notes: why values are missing, and what to know of others."""

    columns: list[str]
    rows: list[MetricRow]
    notes: list[str]


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs.   word: whether that is a gain, beyond what chance would do; as evaluation/compare.py says."""

    difference: str
    interval: str
    word: str


@dataclass(frozen=True)
class DifferenceRow:
    """cells: one for each of the others.   images: that both have a value for."""

    metric: MetricDescription
    cells: list[Difference]
    images: str


@dataclass(frozen=True)
class DifferenceTable:
    others: list[str]
    rows: list[DifferenceRow]


@dataclass(frozen=True)
class ImageTable:
    """columns: of the metrics.   rows: the image, its texts and the numbers to sort by; None sorts last.
    metric: which the order follows.   left_out: rows.   notes: why values are missing, and of how many images."""

    columns: list[MetricDescription]
    rows: list[tuple[ImageRow, list[Cell], list[float | None]]]
    metric: str
    left_out: int
    notes: list[str]


@dataclass(frozen=True)
class Side:
    """A line of a comparison of runs."""

    name: str
    values: list[str]


def metric_table(columns: Sequence[tuple[str, Measured]]) -> MetricTable:
    """One column a codec or baseline, the best of each row marked."""
    names = {name for _, measured in columns for name in (*measured.metrics, *measured.missing)}
    rows = []
    for name in [*(name for name in METRIC_DESCRIPTIONS if name in names), *sorted(names - METRIC_DESCRIPTIONS.keys())]:
        values = [measured.metrics.get(name) for _, measured in columns]
        known = [value for value in values if value is not None]
        better = {"higher": max, "lower": min}.get(describe_metric(name).better)
        best = better(known) if better and len(set(known)) > 1 else None
        cells = [Cell("–") if value is None else Cell(short(value), best=value == best) for value in values]
        rows.append(MetricRow(describe_metric(name), cells))
    return MetricTable([name for name, _ in columns], rows, _notes(columns))


def _notes(columns: Sequence[tuple[str, Measured]]) -> list[str]:
    """Why values are missing, and what to know of others; said once where it holds for several."""
    about: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}  # -> metrics, columns
    for column, measured in columns:
        said = [(" missing", measured.missing), ("", measured.notes)]
        for kind, name, text in ((kind, name, text) for kind, texts in said for name, text in texts.items()):
            metrics, names = about.setdefault((kind, text), ({}, {}))
            metrics[describe_metric(name).title], names[column] = None, None
    sentences = []
    for (kind, text), (metrics, names) in about.items():
        whose = f" for {', '.join(names)}" if len(names) < len(columns) else ""
        sentences.append(f"{', '.join(metrics)}{kind}{whose}: {text}.")
    return sentences


def evaluation_columns(results: StoredResults) -> list[tuple[str, Measured]]:
    """This codec first."""
    return [("this codec", results), *((other.name or other.kind, other) for other in results.others)]


def columns_of(runs: Sequence[RunFolder]) -> list[tuple[str, Measured]]:
    """One a run that has results."""
    return [(run.name, run.results) for run in runs if run.results is not None]


def difference_table(results: StoredResults) -> DifferenceTable:
    """What the bootstrap says of each metric, against each of the others."""
    comparisons = results.comparisons
    rows = []
    for name in dict.fromkeys(name for comparison in comparisons for name in comparison.metrics):
        found = [comparison.metrics.get(name, Interval()) for comparison in comparisons]
        images = dict.fromkeys(str(interval.images) for interval in found if interval.images is not None)
        rows.append(DifferenceRow(describe_metric(name), [_difference(one) for one in found], ", ".join(images)))
    return DifferenceTable([comparison.name for comparison in comparisons], rows)


def _difference(found: Interval) -> Difference:
    if found.difference is None:
        return Difference("–", "", "")
    interval = "" if found.low is None or found.high is None else f"{signed(found.low)} to {signed(found.high)}"
    return Difference(signed(found.difference), interval, WORDS.get(found.verdict, found.verdict))


def image_table(rows: Sequence[ImageRow]) -> ImageTable:
    """The worst first, those without the metric that ranks at the end."""
    metric, ranked = worst_first(rows)
    shown_keys = {id(row) for row in ranked}
    ordered = [*ranked, *(row for row in rows if id(row) not in shown_keys)]
    names = {name for row in rows for name in (*row.values, *row.missing)}
    columns = [*(name for name in METRIC_DESCRIPTIONS if name in names), *sorted(names - METRIC_DESCRIPTIONS.keys())]
    shown = []
    for row in ordered[:IMAGES]:
        numbers = [row.values.get(name) for name in columns]
        cells = [Cell("–" if value is None else short(value)) for value in numbers]
        shown.append((row, cells, numbers))
    title = describe_metric(metric).title if metric else ""
    reasons = Counter((name, reason) for row in rows for name, reason in row.missing.items())
    notes = [
        f"{describe_metric(name).title} is missing for {_images(count)}: {reason}."
        for (name, reason), count in reasons.items()
    ]
    return ImageTable(
        [describe_metric(name) for name in columns], shown, title, max(0, len(ordered) - IMAGES), notes[:REASONS]
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{short(count)} images"


def recipe_differences(runs: Sequence[RunFolder]) -> list[Side]:
    """Settings in which the runs differ, but for where they write."""
    settings = [dict(leaves(run.recipe)) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    return [
        Side(name, [setting(one.get(name, "–")) for one in settings])
        for name in names
        if name not in WHERE and len({repr(one.get(name, "–")) for one in settings}) > 1
    ]


def protocol_differences(runs: Sequence[RunFolder]) -> list[Side]:
    """What the metrics of the runs were taken under differently, so that they cannot be compared."""
    ours = ("model", "step", "weights", "weights_sha256")  # is what is compared
    protocols = [dict(leaves(run.results.protocol)) for run in runs if run.results is not None]
    if len(protocols) < 2:
        return []
    names = dict.fromkeys(name for one in protocols for name in one if name not in ours)
    sides = [Side(name, [setting(one.get(name, "–")) for one in protocols]) for name in names]
    return [side for side in sides if len(set(side.values)) > 1]


def training_table(runs: Sequence[RunFolder]) -> list[Side]:
    """The newest values of validation, and how far each run came."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row if name.startswith("validation/"))
    rows = [Side("last step logged", ["–" if run.steps is None else short(run.steps) for run in runs])]
    rows.append(Side("status", [str(run.status.get("status", "unknown")) for run in runs]))
    if any(run.inspection for run in runs):
        rows.append(Side("verdicts", [_verdicts(run) for run in runs]))
    for name in names:
        values = [run.last(name) for run in runs]
        rows.append(Side(name.replace("validation/", "validation: "), ["–" if v is None else short(v) for v in values]))
    return rows


def _verdicts(run: RunFolder) -> str:
    if run.inspection is None:
        return "not inspected"
    counts = count_verdicts(verdicts(run.inspection))
    return ", ".join(f"{number} {word.lower()}" for _, _, word, number in counts) or "none"


def setting(value: Any) -> str:
    """A value of a recipe or protocol as one reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return short(value, 6)
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or "none"
    return "none" if value in ({}, "") else str(value)
