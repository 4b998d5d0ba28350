"""Prepares the tables of the page: metrics, differences, images, and comparisons of runs."""

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

IMAGE_ROWS = 500  # rows of the table of images at most, the worst images
IMAGE_NOTES = 20  # notes under that table at most
ALWAYS_DIFFERENT = ("output",)  # settings that are different in any two runs
VERDICT_WORDS = {"gain": "better", "loss": "worse", "noise": "within chance"}  # of evaluation/compare.py, for people


@dataclass(frozen=True)
class Cell:
    """A text of a table.

    best: whether it is the best value of its row.
    """

    text: str
    best: bool = False


@dataclass(frozen=True)
class MetricRow:
    metric: MetricDescription
    cells: list[Cell]


@dataclass(frozen=True)
class MetricTable:
    """Metrics in rows, codecs in columns.

    notes: why values are missing, and what one should know about others.
    """

    columns: list[str]
    rows: list[MetricRow]
    notes: list[str]


@dataclass(frozen=True)
class DifferenceCell:
    """This codec minus another, in one metric.

    word: the verdict of evaluation/compare.py: whether that is more than chance.
    """

    difference: str
    interval: str
    word: str


@dataclass(frozen=True)
class DifferenceRow:
    """The differences in one metric.

    cells: one for each of the others.
    images: number of images that have a value from both.
    """

    metric: MetricDescription
    cells: list[DifferenceCell]
    images: str


@dataclass(frozen=True)
class DifferenceTable:
    others: list[str]
    rows: list[DifferenceRow]


@dataclass(frozen=True)
class ImageTable:
    """Images in rows, metrics in columns.

    columns: the metrics.
    rows: the image, the texts of its cells, and the numbers to sort by; None sorts last.
    metric: title of the metric that gives the order.
    left_out: number of rows that are left out.
    notes: why values are missing, and for how many images.
    """

    columns: list[MetricDescription]
    rows: list[tuple[ImageRow, list[Cell], list[float | None]]]
    metric: str
    left_out: int
    notes: list[str]


@dataclass(frozen=True)
class ComparisonRow:
    """A row in a comparison of runs: a name and a value for each run."""

    name: str
    values: list[str]


def metric_table(columns: Sequence[tuple[str, Measured]]) -> MetricTable:
    """A table with a column for each codec or baseline; the best value of each row is marked."""
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
    """Why values are missing, and what one should know about others. A reason that several share is given once."""
    about: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}  # -> metrics, columns
    for column, measured in columns:
        kinds = [(" missing", measured.missing), ("", measured.notes)]
        for kind, name, text in ((kind, name, text) for kind, texts in kinds for name, text in texts.items()):
            metrics, names = about.setdefault((kind, text), ({}, {}))
            metrics[describe_metric(name).title], names[column] = None, None
    sentences = []
    for (kind, text), (metrics, names) in about.items():
        whose = f" for {', '.join(names)}" if len(names) < len(columns) else ""
        sentences.append(f"{', '.join(metrics)}{kind}{whose}: {text}.")
    return sentences


def evaluation_columns(results: StoredResults) -> list[tuple[str, Measured]]:
    """The columns of an evaluation, this codec first."""
    return [("this codec", results), *((other.name or other.kind, other) for other in results.others)]


def columns_of(runs: Sequence[RunFolder]) -> list[tuple[str, Measured]]:
    """A column for each run that has results."""
    return [(run.name, run.results) for run in runs if run.results is not None]


def difference_table(results: StoredResults) -> DifferenceTable:
    """The paired differences in each metric to each of the others."""
    comparisons = results.comparisons
    rows = []
    for name in dict.fromkeys(name for comparison in comparisons for name in comparison.metrics):
        intervals = [comparison.metrics.get(name, Interval()) for comparison in comparisons]
        images = dict.fromkeys(str(interval.images) for interval in intervals if interval.images is not None)
        rows.append(DifferenceRow(describe_metric(name), [_difference(one) for one in intervals], ", ".join(images)))
    return DifferenceTable([comparison.name for comparison in comparisons], rows)


def _difference(one: Interval) -> DifferenceCell:
    if one.difference is None:
        return DifferenceCell("–", "", "")
    interval = "" if one.low is None or one.high is None else f"{signed(one.low)} to {signed(one.high)}"
    return DifferenceCell(signed(one.difference), interval, VERDICT_WORDS.get(one.verdict, one.verdict))


def image_table(rows: Sequence[ImageRow]) -> ImageTable:
    """A table of images, the worst first; images without the ranking metric come last."""
    metric, ranked = worst_first(rows)
    shown_keys = {id(row) for row in ranked}
    ordered = [*ranked, *(row for row in rows if id(row) not in shown_keys)]
    names = {name for row in rows for name in (*row.values, *row.missing)}
    columns = [*(name for name in METRIC_DESCRIPTIONS if name in names), *sorted(names - METRIC_DESCRIPTIONS.keys())]
    shown = []
    for row in ordered[:IMAGE_ROWS]:
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
        [describe_metric(name) for name in columns],
        shown,
        title,
        max(0, len(ordered) - IMAGE_ROWS),
        notes[:IMAGE_NOTES],
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{short(count)} images"


def recipe_differences(runs: Sequence[RunFolder]) -> list[ComparisonRow]:
    """The settings in which the runs differ, except where they write."""
    settings = [dict(leaves(run.recipe)) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    return [
        ComparisonRow(name, [setting(one.get(name, "–")) for one in settings])
        for name in names
        if name not in ALWAYS_DIFFERENT and len({repr(one.get(name, "–")) for one in settings}) > 1
    ]


def protocol_differences(runs: Sequence[RunFolder]) -> list[ComparisonRow]:
    """The entries of the protocol in which the runs differ, so that their metrics cannot be compared."""
    ours = ("model", "step", "weights", "weights_sha256")  # these differ in any comparison of runs
    protocols = [dict(leaves(run.results.protocol)) for run in runs if run.results is not None]
    if len(protocols) < 2:
        return []
    names = dict.fromkeys(name for one in protocols for name in one if name not in ours)
    rows = [ComparisonRow(name, [setting(one.get(name, "–")) for one in protocols]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]


def training_table(runs: Sequence[RunFolder]) -> list[ComparisonRow]:
    """How far each run came, and its newest validation values."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row if name.startswith("validation/"))
    rows = [ComparisonRow("last step logged", ["–" if run.steps is None else short(run.steps) for run in runs])]
    rows.append(ComparisonRow("status", [str(run.status.get("status", "unknown")) for run in runs]))
    if any(run.inspection for run in runs):
        rows.append(ComparisonRow("verdicts", [_verdicts(run) for run in runs]))
    for name in names:
        values = [run.last(name) for run in runs]
        rows.append(
            ComparisonRow(name.replace("validation/", "validation: "), ["–" if v is None else short(v) for v in values])
        )
    return rows


def _verdicts(run: RunFolder) -> str:
    if run.inspection is None:
        return "not inspected"
    counts = count_verdicts(verdicts(run.inspection))
    return ", ".join(f"{number} {word.lower()}" for _, _, word, number in counts) or "none"


def setting(value: Any) -> str:
    """A value of a recipe or protocol in words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return short(value, 6)
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or "none"
    return "none" if value in ({}, "") else str(value)
