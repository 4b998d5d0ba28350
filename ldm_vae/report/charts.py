"""Draws a chart as SVG in the colours and font of the page, with a legend, a table and a text alternative."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_vae.diagnostics.findings import Axis, Chart, Line
from ldm_vae.extras import extra
from ldm_vae.report.numbers import printable, short
from ldm_vae.report.svg import COLOURS, GRID, INK, inline

with extra("report"):
    import matplotlib
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

Numbers = NDArray[np.float64]
LINE_POINTS = 400  # points of a line at most; longer lines are averaged over stretches of equal length
SCATTER_POINTS = 1500  # points of a cloud at most; of a larger cloud every n-th point is drawn
TABLE_ROWS = 40  # rows of the table of numbers at most; of a longer table every n-th row is shown
DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))  # points; lines differ by dashes as well as by colour
SHAPES = {
    "o": "M12 1a3 3 0 1 0 .01 0z",
    "s": "M9 1h6v6h-6z",
    "^": "M12 0l4 7h-8z",
    "D": "M12 0l4 4l-4 4l-4-4z",
}  # as SVG
SIZE = (4.6, 2.7)  # inches
MOST_LINES = 6  # in one chart; more become small multiples
PANELS_ACROSS, PANEL_HEIGHT = 2, 1.25  # of small multiples; inches
SEPARATOR = " · "  # between what a line shows and of which run, in its label
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "ldm_vae",  # else ids are random, and two reports of one run differ
    "text.parse_math": False,  # names may hold $
    "axes.unicode_minus": True,
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class LegendEntry:
    """An entry of the legend.

    colour: number of the series, from 1.
    dash: dashes of its line, as SVG writes them.
    dot: path of its marker, as SVG writes it.
    shape: line, bar or dot.
    """

    label: str
    colour: int
    dash: str
    dot: str
    shape: str


@dataclass(frozen=True)
class Drawing:
    """A chart as the page shows it.

    legend: its entries; empty where the title names the only line.
    heads, rows: the table of its numbers.
    notes: how the chart differs from the data, such as fewer points.
    """

    chart: Chart
    svg: Markup
    legend: list[LegendEntry]
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]


def draw(chart: Chart, identifier: str) -> Drawing | None:
    """The chart as SVG; None where there is nothing to draw.

    identifier: a name that is unique in the page.
    """
    lines = [line for line in chart.lines if any(_finite_values(line.y))]
    if not lines:
        return None
    notes: list[str] = []
    thinned = [_thin(line, chart.kind, notes) for line in lines]
    words = any(isinstance(x, str) for line in thinned for x in line.x)
    panels = _panels(thinned) if chart.kind == "line" and not words and len(thinned) > MOST_LINES else {}
    with matplotlib.rc_context(STYLE):
        categories = list(dict.fromkeys(str(x) for line in thinned for x in line.x)) if words else []
        flat = bool(categories) and chart.kind == "bar" and (len(categories) > 12 or max(map(len, categories)) > 8)
        height = 0.7 + 0.19 * max(len(categories) * len(lines) ** 0.5, 4) if flat else SIZE[1]
        if panels:
            figure = _small_multiples(chart, panels, notes)
        else:
            figure = Figure(figsize=(SIZE[0], height), layout="constrained")
            axes = figure.add_subplot()
            axes.set_axisbelow(True)
            axes.grid(axis="x" if flat else "both" if chart.kind == "scatter" else "y", linewidth=0.6)
            _plot(axes, chart, thinned, categories, flat)
            _axis(axes, "y" if flat else "x", chart.x, chart, thinned, notes, bool(categories))
            _axis(axes, "x" if flat else "y", chart.y, chart, thinned, notes, False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    named = len(lines) > 1 or (lines[0].label and lines[0].label != chart.title)
    labels = [line.label for line in lines]
    if panels:  # their titles say what each shows
        labels = list(dict.fromkeys(_whose(label) for label in labels if _whose(label)))
    legend = [_key(i, label, chart.kind) for i, label in enumerate(labels)] if named else []
    svg = inline(file.getvalue(), identifier, chart.title, _text_alternative(chart, lines))
    return Drawing(chart, svg, legend, *_chart_table(chart, lines, notes), list(dict.fromkeys(notes)))


def _whose(label: str) -> str:
    """The run that a line is of; empty where the label names none."""
    return label.rpartition(SEPARATOR)[2] if SEPARATOR in label else ""


def _panels(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Title of a panel -> its lines: one quantity of all runs."""
    panels: dict[str, list[Line]] = {}
    for line in lines:
        panels.setdefault(line.label.rpartition(SEPARATOR)[0] or line.label, []).append(line)
    return panels


def _small_multiples(chart: Chart, panels: dict[str, list[Line]], notes: list[str]) -> Figure:
    """A panel for each quantity, all on the same axes, so that a dozen lines can be told apart."""
    across, down = PANELS_ACROSS, math.ceil(len(panels) / PANELS_ACROSS)
    figure = Figure(figsize=(SIZE[0], 0.3 + PANEL_HEIGHT * down), layout="constrained")
    every = [line for lines in panels.values() for line in lines]
    runs = list(dict.fromkeys(_whose(line.label) for line in every))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    places = [axes for row in grid for axes in row]
    for axes, (title, lines) in zip(places, panels.items(), strict=False):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_axisbelow(True)
        axes.grid(axis="y", linewidth=0.6)
        for line in lines:
            _draw_line(axes, *_numbers(line), runs.index(_whose(line.label)))
    for which, axis in (("x", chart.x), ("y", chart.y)):
        _axis(places[0], which, axis, chart, every, notes, False)
    places[0].set_xlabel("")
    places[0].set_ylabel("")
    for axes in places[len(panels) :]:
        axes.remove()
        places[len(panels) - across].xaxis.set_tick_params(labelbottom=True)
    if chart.x.title != chart.title:
        figure.supxlabel(printable(chart.x.title), fontsize=10)
    return figure


def _numbers(line: Line, places: Mapping[str, int] | None = None) -> tuple[Numbers, Numbers]:
    """x and y of a line; NaN where there is no value.

    places: of the categories along x; None or empty where x are numbers.
    """
    x = [places[str(x)] for x in line.x] if places else line.x
    y = [math.nan if value is None else value for value in line.y]
    return np.array(x, dtype=float), np.array(y, dtype=float)


def _draw_line(axes: Axes, x: Numbers, y: Numbers, number: int) -> None:
    """number: of the line, which decides colour and dashes."""
    colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    marker = "o" if len(x) < 15 else None
    axes.plot(x, y, color=colour, linewidth=1.5, dashes=dashes or (None, None), marker=marker, markersize=3)


def _plot(axes: Axes, chart: Chart, lines: Sequence[Line], categories: list[str], flat: bool) -> None:
    places = {category: i for i, category in enumerate(categories)}
    width = 0.8 / len(lines)
    for i, line in enumerate(lines):
        x, y = _numbers(line, places)
        colour = COLOURS[i % len(COLOURS)]
        if chart.kind == "bar":
            gap = 1.0 if categories or len(x) < 2 else float(np.min(np.diff(np.unique(x)), initial=np.inf))
            gap = gap if math.isfinite(gap) else 1.0
            place = x + gap * width * (i - (len(lines) - 1) / 2)
            (axes.barh if flat else axes.bar)(place, y, gap * width, color=colour)
        elif chart.kind == "scatter":
            axes.plot(x, y, list(SHAPES)[i % len(SHAPES)], color=colour, markersize=2.5, alpha=0.75)
        else:
            _draw_line(axes, x, y, i)
    if categories:
        if flat:
            axes.set_yticks(range(len(categories)), categories)
            axes.invert_yaxis()
        else:
            turned = sum(map(len, categories)) > 45
            axes.set_xticks(range(len(categories)), categories, rotation=60 if turned else 0)


def _axis(
    axes: Axes, which: str, axis: Axis, chart: Chart, lines: Sequence[Line], notes: list[str], categories: bool
) -> None:
    same = axis.title == chart.title  # the heading above the chart already has title and unit
    title = f"{axis.title} ({axis.unit})" if axis.unit else axis.title
    if not same:
        (axes.set_xlabel if which == "x" else axes.set_ylabel)(printable(title))
    if categories:
        return
    part = axes.xaxis if which == "x" else axes.yaxis
    log = axis.scale == "log"
    values = [v for line in lines for v in _finite_values(line.y if axis is chart.y else line.x)]
    if log and min(values) <= 0:
        notes.append(f"The scale of {axis.title.lower()} is linear, because some values are not positive.")
        log = False
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        narrow = max(values) / min(values) < 50
        if chart.kind == "bar":  # the axis starts at a power of ten, so that no bar is too short to see
            (axes.set_xlim if which == "x" else axes.set_ylim)(10.0 ** math.floor(math.log10(min(values) * 0.9)))
        part.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=6))
        part.set_minor_formatter(NullFormatter())
    else:
        part.set_major_locator(MaxNLocator(5, integer=axis.title == "step"))
    part.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _finite_values(values: Sequence[float | str | None]) -> list[float]:
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _thin(line: Line, kind: str, notes: list[str]) -> Line:
    """The line with at most as many points as a chart can show."""
    label = printable(line.label)
    if any(isinstance(x, str) for x in line.x):
        return Line(label=label, x=tuple(printable(str(x)) for x in line.x), y=line.y)
    limit = SCATTER_POINTS if kind == "scatter" else LINE_POINTS
    if len(line.x) <= limit:
        return Line(label=label, x=line.x, y=line.y)
    every = math.ceil(len(line.x) / limit)
    if kind == "scatter":
        notes.append(f"One point in {every} is drawn.")
        return Line(label=label, x=line.x[::every], y=line.y[::every])
    notes.append(f"Every point is a mean over {every} values.")
    x, y = [], []
    for first in range(0, len(line.x), every):
        part = _finite_values(line.y[first : first + every])
        x.append(line.x[min(first + every, len(line.x)) - 1])
        y.append(math.fsum(part) / len(part) if part else None)
    return Line(label=label, x=tuple(x), y=tuple(y))


def _key(number: int, label: str, kind: str) -> LegendEntry:
    dash = " ".join(map(str, DASHES[number % len(DASHES)])) if kind == "line" else ""
    dot = list(SHAPES.values())[number % len(SHAPES)]
    return LegendEntry(
        label, number % len(COLOURS) + 1, dash, dot, {"line": "line", "bar": "bar", "scatter": "dot"}[kind]
    )


def _text_alternative(chart: Chart, lines: Sequence[Line]) -> str:
    """What the chart shows, in words, for people who cannot see it."""
    parts = []
    for line in lines[:8]:
        y, name = _finite_values(line.y), printable(line.label) or "the values"
        if chart.kind == "line" and len(y) > 1:
            parts.append(
                f"{name} goes from {short(y[0])} to {short(y[-1])}, between {short(min(y))} and {short(max(y))}"
            )
        else:
            count = "1 value" if len(y) == 1 else f"{len(y)} values"
            parts.append(f"{name} has {count} between {short(min(y))} and {short(max(y))}")
    more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
    kind = {"line": "Line chart", "bar": "Bar chart", "scatter": "Scatter plot"}[chart.kind]
    unit = f" in {chart.y.unit}" if chart.y.unit else ""
    return f"{kind} of {chart.y.title}{unit} over {chart.x.title}: {'; '.join(parts)}{more}."


def _chart_table(chart: Chart, lines: Sequence[Line], notes: list[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: x and the y of each line, at most TABLE_ROWS rows. Clouds of points have no table."""
    if chart.kind == "scatter":
        return [], []
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    places = list(dict.fromkeys(x for line in lines for x in line.x))
    if not any(isinstance(place, str) for place in places):
        places.sort(key=float)
    every = math.ceil(len(places) / TABLE_ROWS)
    if every > 1:
        notes.append(f"The table shows one row in {every}.")
    shown = [place for i, place in enumerate(places) if (len(places) - 1 - i) % every == 0]
    heads = [chart.x.title, *(line.label or chart.y.title for line in lines)]
    return heads, [[_cell(place), *(_cell(line.get(place)) for line in values)] for place in shown]


def _cell(value: float | str | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else short(value, 5)
