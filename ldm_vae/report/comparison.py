"""Sets runs side by side: metrics of the same images by the same protocol, values of the logs, and recipes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_vae.interop.results import CONTENT, Comparison, Interval, Measurement, comparable, conditions
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.printable import counted
from ldm_vae.recipe import leaves
from ldm_vae.report.diagnosis import count_verdicts, verdicts
from ldm_vae.report.numbers import short
from ldm_vae.report.run import RunFolder, section
from ldm_vae.report.tables import (
    DifferenceTable,
    MetricTable,
    difference_table,
    metric_table,
    protocol_line,
    setting,
)

ALWAYS_DIFFERENT = ("output",)  # settings that are different in any two runs
TURNED = {"gain": "loss", "loss": "gain"}


@dataclass(frozen=True)
class ComparisonRow:
    """A row in a comparison of runs: a name and a value for each run."""

    name: str
    values: list[str]


@dataclass(frozen=True)
class SideBySide:
    """Runs that were measured on the same images by the same protocol.

    conditions: these, in a line.
    differences: who is better image by image, where a command has measured both.
    """

    conditions: str
    metrics: MetricTable
    differences: DifferenceTable


def side_by_side(runs: Sequence[RunFolder]) -> list[SideBySide]:
    """The measurements of present weights that may be compared."""
    return [_side_by_side(runs, group) for group in _groups(runs)]


def alone(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs that were measured, but not as any other one was; empty where fewer than two were measured."""
    compared = {place for group in _groups(runs) for place in group}
    measured = [place for place, run in enumerate(runs) if run.results is not None]
    return [runs[place] for place in measured if place not in compared] if len(measured) > 1 else []


def _groups(runs: Sequence[RunFolder]) -> list[dict[int, Measurement]]:
    """Two runs or more that may be compared, in each group."""
    groups: list[dict[int, Measurement]] = []  # place of the run -> its measurement
    for place, run in enumerate(runs):
        measurements = [run.evaluations.current, *run.evaluations.more]
        for measured in (one for one in measurements if one is not None):
            group = next((group for group in groups if comparable(next(iter(group.values())), measured)), None)
            if group is None:
                groups.append({place: measured})
            else:
                group.setdefault(place, measured)
    return [group for group in groups if len(group) > 1]


def _side_by_side(runs: Sequence[RunFolder], group: dict[int, Measurement]) -> SideBySide:
    first, *others = group
    pairs = [(runs[place].name, _between(group[first], group[place])) for place in others]
    paired = [Comparison(name=name, metrics=metrics) for name, metrics in pairs if metrics]
    table = metric_table([(runs[place].name, measured) for place, measured in group.items()])
    return SideBySide(protocol_line(group[first].protocol), table, difference_table(runs[first].name, paired))


def _between(first: Measurement, other: Measurement) -> dict[str, Interval]:
    """The differences of two measurements, from the file of either; empty where no command has measured both."""
    if (found := _stored(first, other)) is not None:
        return found
    return {name: _turned(one) for name, one in (_stored(other, first) or {}).items()}


def _stored(first: Measurement, other: Measurement) -> dict[str, Interval] | None:
    """Codecs are known by their weights: a name may mean another one by now."""
    name = next((one.name for one in first.others if one.weights is not None and one.weights == other.weights), None)
    return next((comparison.metrics for comparison in first.comparisons if comparison.name == name), None)


def _turned(one: Interval) -> Interval:
    low, high = (None if end is None else -end for end in (one.high, one.low))
    return one.model_copy(
        update={
            "difference": None if one.difference is None else -one.difference,
            "low": low,
            "high": high,
            "verdict": TURNED.get(one.verdict, one.verdict),
        }
    )


def compare_command(runs: Sequence[RunFolder]) -> str:
    """The command that measures all runs on the same images."""
    shards = next((run.validation_shards for run in runs if run.validation_shards), None) or "SHARDS"
    return shlex.join(["ldm-vae", "evaluate", *(run.name for run in runs), shards])


def recipe_differences(runs: Sequence[RunFolder]) -> list[ComparisonRow]:
    """The settings in which the runs differ, except where they write."""
    rows = _differences([dict(leaves(run.recipe)) for run in runs])
    return [row for row in rows if row.name not in ALWAYS_DIFFERENT]


def protocol_differences(runs: Sequence[RunFolder]) -> list[ComparisonRow]:
    """The entries of the protocol in which the newest measurements differ, so that they cannot be compared.

    The place of the shards counts as in `comparable`: not where what is in them is the same.
    """
    protocols = [dict(leaves(conditions(run.results.protocol))) for run in runs if run.results is not None]
    contents = {one.get(CONTENT) for one in protocols}
    ignored = CONTENT if None in contents else "shards" if len(contents) == 1 else ""
    return [row for row in _differences(protocols) if row.name != ignored]


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[ComparisonRow]:
    """The names whose values are not the same everywhere."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [
        ComparisonRow(name, [setting(one.get(name, "–")) for one in settings])
        for name in names
        if len({repr(one.get(name, "–")) for one in settings}) > 1
    ]


def training_table(runs: Sequence[RunFolder]) -> list[ComparisonRow]:
    """How far each run came, and its newest validation values; beside them, in what the validations differ."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row if _is_summary(name))
    rows = [ComparisonRow("last step logged", ["–" if run.steps is None else short(run.steps) for run in runs])]
    rows.append(ComparisonRow("status", [str(run.status.get("status", "unknown")) for run in runs]))
    if any(run.inspection for run in runs):
        rows.append(ComparisonRow("verdicts", [_verdicts(run) for run in runs]))
    marks = [f" ({mark})" if mark else "" for mark in validation_marks(runs)]
    for name in names:
        described = describe_metric(name.removeprefix("validation/"))
        title = " ".join(filter(None, ("validation:", described.title, described.unit, described.arrow)))
        values = [run.last(name) for run in runs]
        shown = ["–" if v is None else short(v) + mark for v, mark in zip(values, marks, strict=True)]
        rows.append(ComparisonRow(title, shown))
    return rows


def _is_summary(name: str) -> bool:
    """Whether a value of the log stands in the table of newest values; channels stand in the curves alone."""
    return name.startswith("validation/") and "_channel_" not in name


def validation_marks(runs: Sequence[RunFolder]) -> list[str]:
    """For each run, in what its validation differs from that of the others, such as "crop 128"; else empty."""
    facts = [_validation(run) for run in runs]
    known = [one for one in facts if one]
    different = [name for name in ("data", "resize", "crop", "images") if len({one[name] for one in known}) > 1]
    return [", ".join(one[name] for name in different) if one else "" for one in facts]


def _validation(run: RunFolder) -> dict[str, str]:
    """How a run prepares its validation images, in words; empty where it has not validated."""
    if run.last_step("validation/") is None:
        return {}
    config, images = section(run.recipe, "validation"), run.last("validation/images")
    sides = {name: config.get(name) for name in ("resize", "crop")}
    words = {name: f"{name} {side}" if side else f"no {name}" for name, side in sides.items()}
    return {
        "data": f"on {run.validation_shards}",
        "images": "" if images is None else counted(int(images), "image"),
        **words,
    }


def _verdicts(run: RunFolder) -> str:
    if run.inspection is None:
        return "not inspected"
    counts = count_verdicts(verdicts(run.inspection))
    return ", ".join(f"{number} {word.lower()}" for _, _, word, number in counts) or "none"
