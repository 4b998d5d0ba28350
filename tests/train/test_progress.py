"""What a run draws on a terminal of 80 and of 120 columns, as a terminal shows it, and what it writes into a log."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from accelerate import Accelerator

from ldm_vae.progress import ProgressMeter
from tests.terminal import terminal
from train.progress import Progress, fold

pyte = pytest.importorskip("pyte", reason="shows what a terminal would")

ROW = {"pixel": 0.123456, "perceptual": 0.4567, "rate": 12345.6, "generator": -0.1234, "discriminator": 1.0123}
ROW |= {"time/images_per_second": 123.4, "total": 7.0}
LOSSES = ["123.4 images/s", "pixel 0.1235", "perceptual 0.4567", "rate 1.235e+04", "generator -0.1234"]
LOSSES += ["discriminator 1.012"]


@contextmanager
def drawing(monkeypatch: pytest.MonkeyPatch, columns: int) -> Iterator[tuple[Progress, Callable[[], list[str]]]]:
    """The progress of a run after 160 of 640 steps, and what stands on the screen, line by line."""
    with terminal(monkeypatch, columns) as drawn:
        handler = logging.StreamHandler(sys.stderr)  # as the trainer sets it up at its start
        logging.getLogger().addHandler(handler)
        try:
            with Progress(Accelerator(), steps=640, start=160, batch=4) as progress:
                yield progress, lambda: shown(drawn(), columns)
        finally:
            logging.getLogger().removeHandler(handler)


def shown(text: str, columns: int) -> list[str]:
    screen = pyte.Screen(columns, 24)
    pyte.Stream(screen).feed(text)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_is_whole_and_the_losses_stand_below_it(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    with drawing(monkeypatch, columns) as (progress, screen):
        progress.show(180, ROW)
        bar, *below = screen()
        assert bar.startswith("train:  25%|") and "| 160/640 [" in bar and bar.endswith("step/s]")
        assert len(bar) == columns - 1  # all of the width, and no more
        assert "  ".join(below).split("  ") == LOSSES
        assert len(below) == (2 if columns == 80 else 1)


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_and_warnings_scroll_above_the_bar(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    with drawing(monkeypatch, columns) as (progress, screen):
        progress.show(180, ROW)
        for number in range(3):
            logging.getLogger("train").warning("step 180: warning %d", number)
            progress.show(180, ROW)
        warnings.warn("from a library", stacklevel=1)
        progress.say("validation 180: " + "  ".join(["PSNR 20.00 (+1.00)"] * 3) + "  samples/step_00000180.png")
        lines = screen()
        assert lines[:3] == [f"step 180: warning {number}" for number in range(3)]
        assert "UserWarning: from a library" in "".join(lines)
        place = next(i for i, line in enumerate(lines) if line.startswith("validation 180: "))
        assert any(line.endswith("samples/step_00000180.png") for line in lines[place : place + 2])  # the path is whole
        (bar,) = [i for i, line in enumerate(lines) if line.startswith("train: ")]
        assert bar == (place + 2 if columns == 80 else place + 1)
        assert "  ".join(lines[bar + 1 :]).split("  ") == LOSSES


def test_a_validation_has_a_bar_of_its_own_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with drawing(monkeypatch, 80) as (progress, screen):
        progress.show(180, ROW)
        before = screen()
        with ProgressMeter("image", "validation 180") as meter:
            meter.advance(0, 16)
            *above, below = screen()
            assert above == before and below.startswith("validation 180:   0%|") and "| 0/16 [" in below
        progress.unpause()
        assert screen() == before


def test_what_is_left_at_the_end_is_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, 80) as drawn:
        with Progress(Accelerator(), steps=640, start=160, batch=4) as progress:
            progress.show(180, ROW)
            for _ in range(480):
                progress.advance()
        progress.say("best: PSNR 20.00 at step 640")
        bar, best = shown(drawn(), 80)
    assert "640/640" in bar and best == "best: PSNR 20.00 at step 640"


def test_a_log_gets_lines_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Accelerator(), steps=640, start=160, batch=4) as progress:
        progress.advance()
        progress.show(180, ROW)
        progress.say("a name \x1b[31m of a hostile file")
    losses = "  ".join(LOSSES[1:])
    assert capsys.readouterr().err == (
        f"step 180/640  123.4 images/s  0.2 min left  {losses}\na name \\x1b[31m of a hostile file\n"
    )


def test_folding_breaks_between_losses_alone() -> None:
    assert fold(["1.0 images/s", "pixel 0.5"], 40) == ["1.0 images/s  pixel 0.5", ""]
    assert fold(["1.0 images/s", "pixel 0.5"], 20) == ["1.0 images/s", "pixel 0.5"]
    assert fold(["1.0 images/s", "pixel 0.5", "rate 3"], 12) == ["1.0 images/s", "pixel 0.5"]
