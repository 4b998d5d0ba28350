"""Which values share a chart, and that none is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ldm_vae.report.curves import NOT_DRAWN, OTHERS, charts, counter_sentences
from ldm_vae.report.run import read_run


def test_every_logged_value_is_drawn_once(whole_run: Path) -> None:
    run = read_run(str(whole_run))
    logged = {name for row in run.rows for name in row} - set(NOT_DRAWN)
    lines = [line for part in charts([run]).values() for chart in part for line in chart.lines]
    assert len(lines) == len(logged) == 10
    drawn = sorted(tuple(value for value in line.y) for line in lines)
    expected = sorted(tuple(row[name] for row in run.rows if name in row) for name in logged)
    assert str(drawn) == str(expected)


def test_what_belongs_together_shares_a_chart(whole_run: Path) -> None:
    found = {chart.name: chart for part in charts([read_run(str(whole_run))]).values() for chart in part}
    assert [line.label for line in found["reconstruction"].lines] == ["pixel", "perceptual"]
    assert found["gradient_norm"].y.scale == "log"
    assert found["validation_psnr"].y.unit == "dB" and found["validation_psnr"].lines[0].x == (100.0, 200.0)


def test_unknown_values_get_charts_of_their_own(whole_run: Path) -> None:
    run = read_run(str(whole_run))
    run = replace(run, rows=[{"step": 1.0, "equivariance": 0.5, "time/new": 2.0}])
    assert [chart.title for chart in charts([run])[OTHERS]] == ["equivariance", "time/new"]
    assert charts([replace(run, rows=[{"step": 1.0, "equivariance": None}])]) == {}


def test_counters_are_told_where_they_are_not_zero(whole_run: Path) -> None:
    run = read_run(str(whole_run))
    assert counter_sentences(run) == []
    run = replace(run, rows=[*run.rows, {"step": 300.0, "skipped_steps": 4.0}])
    assert counter_sentences(run) == ["4 optimizer steps were skipped, because a gradient was not finite."]
    run = replace(run, rows=[{"step": 1.0, "skipped_steps": 1.0, "validation/left_out": 1.0}], broken=1)
    assert counter_sentences(run) == [
        "1 optimizer step was skipped, because a gradient was not finite.",
        "1 broken validation image was left out.",
        "1 broken training image was replaced by another one.",
    ]
