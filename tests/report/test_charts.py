"""Charts as elements of the page: names of their own, colours of the page, nothing that breaks out."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from ldm_vae.diagnostics.findings import Axis, Chart, Line
from ldm_vae.report.charts import LINE_POINTS, SCATTER_POINTS, TABLE_ROWS, Drawing, draw

SVG = "{http://www.w3.org/2000/svg}"


def chart(*lines: Line, kind: str = "line", scale: str = "linear", title: str = "Loss") -> Chart:
    y = Axis.model_validate({"title": "value", "unit": "dB", "scale": scale})
    return Chart.model_validate(
        {"name": "a", "title": title, "definition": "d", "kind": kind, "x": Axis(title="step"), "y": y, "lines": lines}
    )


def drawn(*lines: Line, **options: str) -> Drawing:
    found = draw(chart(*lines, **options), "one")
    assert found is not None
    return found


def line(*y: float | None, label: str = "a") -> Line:
    return Line(label=label, x=tuple(float(i) for i in range(len(y))), y=y)


def test_ids_are_of_the_chart_and_references_meet_them() -> None:
    root = ElementTree.fromstring(drawn(line(1, 2, 3), line(3, 2, 1, label="b")).svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 10
    assert all(str(i).startswith("one-") for i in ids)
    text = ElementTree.tostring(root, encoding="unicode")
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert references and references <= set(ids)


def test_colours_and_font_are_those_of_the_page() -> None:
    svg = str(drawn(line(1, 2, 3)).svg)
    assert "var(--series-1)" in svg and "currentColor" in svg and "var(--grid)" in svg
    assert set(re.findall(r"(?:stroke|fill): (#\w+)", svg)) == set()  # none that dark mode would not change
    assert "<style" not in svg and "<metadata" not in svg
    assert "<text" in svg  # not paths


def test_the_alternative_text_tells_the_course() -> None:
    root = ElementTree.fromstring(drawn(line(4, 1, 2), title="PSNR").svg)
    assert root.get("role") == "img"
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None and title.text == "PSNR"
    assert description is not None
    assert description.text == "Line chart of value in dB over step: a goes from 4 to 2, between 1 and 4."
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\frac{1}{0}$", "\x00\x1b[31m", "\udce4", '"&<'])
def test_names_cannot_break_out(name: str) -> None:
    found = drawn(line(1, 2, label=name), line(2, 1, label="b"), title=name)
    root = ElementTree.fromstring(found.svg.encode())
    assert root.find(f".//{SVG}script") is None
    words = Line(label="c", x=(name, "b"), y=(1.0, 2.0))
    ElementTree.fromstring(drawn(words, kind="bar").svg.encode())


def test_a_log_scale_needs_positive_values() -> None:
    assert drawn(line(0.001, 1.0), scale="log").notes == []
    assert drawn(line(0.0, 1.0), scale="log").notes == [
        "The scale of value is linear, because some values are not positive."
    ]


def test_gaps_stay_gaps_and_nothing_is_no_chart() -> None:
    assert drawn(line(1, None, 3)).rows == [["0", "1"], ["1", "–"], ["2", "3"]]
    assert draw(chart(line(None, None)), "one") is None
    assert draw(chart(), "one") is None


def test_long_lines_are_averaged_and_long_tables_thinned() -> None:
    found = drawn(line(*[float(i % 2) for i in range(4 * LINE_POINTS)]))
    assert found.notes[0] == "Every point is a mean over 4 values."
    assert len(found.rows) <= TABLE_ROWS and found.rows[-1][0] == str(4 * LINE_POINTS - 1)  # the last is always there
    (path,) = re.findall(r'<path d="([^"]+)"[^>]*stroke: var\(--series-1\)', str(found.svg))
    heights = {float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)}
    assert len(heights) == 1  # a mean of 0, 1, 0, 1 is a half everywhere


def test_large_clouds_are_thinned() -> None:
    count = 3 * SCATTER_POINTS
    found = drawn(line(*[float(i) for i in range(count)]), kind="scatter")
    assert found.notes == ["One point in 3 is drawn."]
    assert str(found.svg).count("<use") < SCATTER_POINTS + 50
    assert found.rows == []


def test_bars_of_long_names_lie_flat_and_grow() -> None:
    layers = tuple(f"decoder.up_blocks.{i}.resnets.0" for i in range(30))
    found = drawn(Line(label="", x=layers, y=tuple(float(i) for i in range(30))), kind="bar")
    _, _, width, height = map(float, re.findall(r'viewBox="([^"]+)"', str(found.svg))[0].split())
    assert height > width
    assert all(layer in str(found.svg) for layer in layers)


def test_many_lines_become_small_multiples_on_the_same_axes() -> None:
    """A panel for each quantity, with a line for each run; the legend names the runs alone."""
    names = [f"channel {i}" for i in range(5)]
    lines = [line(1, 2, 3 + i, label=f"{name} · {run}") for i, name in enumerate(names) for run in ("x", "y")]
    found = drawn(*lines)
    svg = str(found.svg)
    assert [svg.count(f">{name}<") for name in names] == [1] * 5
    assert [(key.label, key.colour) for key in found.legend] == [("x", 1), ("y", 2)]
    assert svg.count("var(--series-1)") and svg.count("var(--series-2)") and "var(--series-3)" not in svg
    root = ElementTree.fromstring(svg)
    panels = [e for e in root.iter(f"{SVG}g") if re.fullmatch(r"one-axes_\d+", e.get("id") or "")]
    assert len(panels) == len(names)
    labels = [["".join(t.itertext()) for t in panel.iter(f"{SVG}text")] for panel in panels]
    numbers = [{text for text in one if re.fullmatch(r"[\d.]+", text)} for one in labels]
    assert {"0", "1", "2"} <= numbers[-1]  # steps below the last panel of each column
    assert numbers[0] == numbers[2] and numbers[1] == set()  # one scale of values, at the left
    assert len(drawn(*lines[:6]).legend) == 6  # few enough to lie over each other


def test_many_lines_of_one_run_have_panels_without_a_legend() -> None:
    found = drawn(*(line(1, 2, label=str(i)) for i in range(7)))
    assert found.legend == [] and len(found.heads) == 8
