"""The bar that long commands draw: where somebody looks, on the first process alone, with rate and time left."""

from __future__ import annotations

import os
import pty
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

from ldm_vae.cli import options
from ldm_vae.cli.options import ProgressMeter
from tests.cli.commands import command


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """stderr is a terminal; the function gives what has been drawn on it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    os.set_blocking(master, False)
    text = b""

    def drawn() -> str:
        nonlocal text
        with suppress(BlockingIOError):
            while True:
                text += os.read(master, 2**16)
        return text.decode()

    with monkeypatch.context() as patch, os.fdopen(slave, "w", buffering=1) as stderr:
        patch.setattr(sys, "stderr", stderr)
        yield drawn
    os.close(master)


def draw() -> None:
    with ProgressMeter("image") as progress:
        progress.advance(0, 8)
        for _ in range(4):
            time.sleep(0.15)  # tqdm draws ten times a second at most
            progress.advance(2, 8)


def test_a_terminal_shows_what_is_done_the_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as drawn:
        draw()
        assert re.search(r"50%.*4/8 \[00:0\d<00:0\d, +[\d.]+image/s\]", drawn())


def test_other_processes_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with terminal(monkeypatch) as drawn:
        draw()
        assert drawn() == ""


@pytest.mark.parametrize(
    ("rank", "every", "lines"),
    [(0, options.LINE_EVERY, []), (0, 0.0, ["0/8", "2/8", "4/8", "6/8", "8/8"]), (1, 0.0, [])],
)
def test_a_log_file_gets_no_bar_but_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, every: float, lines: list[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(options, "LINE_EVERY", every)
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        draw()
    written = (tmp_path / "log").read_text()
    assert "\r" not in written
    assert re.findall(r"\d/8", written) == lines


@pytest.mark.parametrize(("world", "total"), [(1, 11), (2, 7)])
def test_encode_counts_the_images_of_its_share(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, total: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(options, "tqdm", partial(tqdm, mininterval=0))  # draws each image, however fast
    with terminal(monkeypatch) as drawn:
        assert command("encode", run, shards, tmp_path / "out") == 0
        for count in range(1, total + 1):
            assert f" {count}/{total} [" in drawn()
