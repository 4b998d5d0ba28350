"""Prepares the tables of the page: metrics, differences, images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_vae.evaluation.shared import shared_reasons
from ldm_vae.evaluation.wording import Advantage, advantage
from ldm_vae.interop.results import Comparison, ImageRow, Interval, Measured, Measurement, comparable
from ldm_vae.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription, describe_metric
from ldm_vae.printable import counted
from ldm_vae.report.evaluations import Evaluations
from ldm_vae.report.gallery import worst_first
from ldm_vae.report.numbers import short

IMAGE_ROWS = 500  # rows of the table of images at most, the worst images
IMAGE_NOTES = 20  # notes under that table at most


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
class DifferenceRow:
    """The differences in one metric.

    cells: one for each of the others; None where there is no value from both.
    images: number of images that have a value from both.
    """

    metric: MetricDescription
    cells: list[Advantage | None]
    images: str


@dataclass(frozen=True)
class DifferenceTable:
    """Who is better in each metric: a codec, named first, or each of the others."""

    first: str
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
    found = dict(columns)
    sentences = []
    for kind, field in ((" missing", "missing"), ("", "notes")):
        for reason, metrics, names in shared_reasons({name: getattr(one, field) for name, one in found.items()}):
            titles = ", ".join(dict.fromkeys(describe_metric(metric).title for metric in metrics))
            whose = f" for {', '.join(names)}" if len(names) < len(found) else ""
            sentences.append(f"{titles}{kind}{whose}: {reason}.")
    return sentences


def evaluation_columns(results: Measurement) -> list[tuple[str, Measured]]:
    """The columns of an evaluation, this codec first. Another model's name says its step, because it may train on."""
    return [("this codec", results), *((_name(other), other) for other in results.others)]


def _name(other: Measured) -> str:
    name = other.name or other.kind
    return name if other.step is None else f"{name}, step {short(other.step)}"


def difference_table(first: str, comparisons: Sequence[Comparison]) -> DifferenceTable:
    """Who is better image by image, in each metric.

    first: name of the codec that is compared with the others.
    """
    rows = []
    for name in dict.fromkeys(name for comparison in comparisons for name in comparison.metrics):
        intervals = [comparison.metrics.get(name, Interval()) for comparison in comparisons]
        images = dict.fromkeys(str(interval.images) for interval in intervals if interval.images is not None)
        cells = [
            _advantage(name, (first, comparison.name), one)
            for comparison, one in zip(comparisons, intervals, strict=True)
        ]
        rows.append(DifferenceRow(describe_metric(name), cells, ", ".join(images)))
    return DifferenceTable(first, [comparison.name for comparison in comparisons], rows)


def _advantage(metric: str, names: tuple[str, str], one: Interval) -> Advantage | None:
    if one.difference is None:
        return None
    interval = None if one.low is None or one.high is None else (one.low, one.high)
    return advantage(metric, names, one.difference, interval, one.verdict, lambda value: short(value, 3))


def earlier_table(found: Evaluations) -> MetricTable | None:
    """The measurements of a run at its steps, on the same images by the same protocol; None without earlier ones."""
    if not found.earlier:
        return None
    first, *rest = [*([] if found.current is None else [found.current]), *found.earlier]
    steps = {one.step: one for one in reversed([first, *(one for one in rest if comparable(one, first))])}
    ordered = sorted(steps.items(), key=lambda pair: -1 if pair[0] is None else pair[0], reverse=True)
    if found.current is not None and len(ordered) < 2:
        return None
    return metric_table([("unknown step" if step is None else f"step {short(step)}", one) for step, one in ordered])


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
        f"{describe_metric(name).title} is missing for {counted(count, 'image')}: {reason}."
        for (name, reason), count in reasons.items()
    ]
    return ImageTable(
        [describe_metric(name) for name in columns],
        shown,
        title,
        max(0, len(ordered) - IMAGE_ROWS),
        notes[:IMAGE_NOTES],
    )


def images_in(protocol: Mapping[str, Any]) -> str:
    """How many images were measured, in words."""
    images = protocol.get("images")
    return counted(images, "image") if isinstance(images, int) else "images"


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """What was measured on which images, in a line."""
    images, shards = images_in(protocol), protocol.get("shards")
    parts = [f"{images} of {setting(shards)}" if shards else images]
    parts += [f"{name} {setting(protocol[name])}" for name in ("resize", "crop", "protocol") if name in protocol]
    parts += [setting(protocol[name]) for name in ("latent", "precision") if name in protocol]
    return ", ".join(parts)


def setting(value: Any) -> str:
    """A value of a recipe or protocol in words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return short(value, 6)
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or "none"
    return "none" if value in ({}, "") else str(value)
