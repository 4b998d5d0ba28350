"""The bar that long commands draw: where somebody looks, on the first process alone, with rate and time left."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from ldm_vae import progress
from ldm_vae.progress import ProgressMeter
from tests.terminal import terminal


def draw() -> None:
    with ProgressMeter("image", "reading") as meter:
        meter.advance(0, 8)
        for _ in range(4):
            time.sleep(0.15)  # tqdm draws ten times a second at most
            meter.advance(2, 8)


def test_a_terminal_shows_what_is_done_the_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as drawn:
        draw()
        assert re.search(r"reading:  50%.*4/8 \[00:0\d<00:0\d, +[\d.]+image/s\]", drawn())


def test_other_processes_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with terminal(monkeypatch) as drawn:
        draw()
        assert drawn() == ""


@pytest.mark.parametrize(
    ("rank", "every", "lines"),
    [(0, progress.LINE_EVERY, []), (0, 0.0, ["0/8", "2/8", "4/8", "6/8", "8/8"]), (1, 0.0, [])],
)
def test_a_log_file_gets_no_bar_but_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, every: float, lines: list[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(progress, "LINE_EVERY", every)
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        draw()
    written = (tmp_path / "log").read_text()
    assert "\r" not in written and written.count("reading:") == len(lines)
    assert re.findall(r"\d/8", written) == lines
