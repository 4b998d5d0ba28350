"""Options that several subcommands share, and the progress display."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, get_args

import typer
from tqdm import tqdm

from ldm_vae.atomic import require_writable
from ldm_vae.data.images.fit import ImageConfig, ResizeFilter
from ldm_vae.errors import UserError
from ldm_vae.passwords import without_secrets
from ldm_vae.printable import printable
from ldm_vae.ranks import rank_and_world

RESIZE_FILTERS: tuple[ResizeFilter, ...] = get_args(ResizeFilter)
DEFAULT_FILTER: ResizeFilter = ImageConfig().resize_filter
LONGEST_WORDS = 40  # characters before a bar, so that 80 columns hold both
LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run, checkpoint, exported folder or Hub id.")]
Shards = Annotated[str, typer.Argument(metavar="SHARDS", help="Folder, glob, brace pattern or URL of image shards.")]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="short:N[:FILTER]",
        help="Resize the short side to N pixels; without it the images keep their size. "
        f"The filter is one of {', '.join(RESIZE_FILTERS)}; without it, {DEFAULT_FILTER}.",
    ),
]
Crop = Annotated[str | None, typer.Option(metavar="center:N", help="Cut a square of N pixels from the middle.")]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Images in a batch of each process; images in a batch have one size.")
]


def writable(path: Path | None) -> Path | None:
    """A callback of options: refuses a file that could not be written, before the work is done."""
    if path is not None:
        require_writable(path)
    return path


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=writable, help="Write the numbers to FILE."),
]


def command_line(context: typer.Context) -> str:
    """The command as the person typed it, without passwords, for cards and reports."""
    return shlex.join(["ldm-vae", *map(without_secrets, context.obj)])


def image_config(channels: int, resize: str | None, crop: str | None) -> ImageConfig:
    """How images are prepared, as --resize and --crop say. Raises UserError for any other wording."""
    resize, chosen = _filter(resize)
    short, side = _pixels(resize, "--resize", "short"), _pixels(crop, "--crop", "center")
    if short is not None and side is not None and side > short:
        raise UserError(f"--crop {crop} is larger than --resize {resize}", "crop at most what the resize leaves")
    return ImageConfig(channels=channels, resize=short, resize_filter=chosen, crop=side, crop_mode="center")


def _filter(resize: str | None) -> tuple[str | None, ResizeFilter]:
    """The option without the filter, and the filter."""
    size, _, name = (resize or "").rpartition(":") if (resize or "").count(":") == 2 else (resize, "", DEFAULT_FILTER)
    for known in RESIZE_FILTERS:
        if name == known:
            return size, known
    raise UserError(f"--resize {resize}: there is no filter {name!r}", f"choose from {', '.join(RESIZE_FILTERS)}")


def _pixels(text: str | None, option: str, word: str) -> int | None:
    if text is None or text == "none":
        return None
    kind, _, number = text.partition(":")
    if kind != word or not number.isdecimal() or int(number) < 1:
        raise UserError(f"{option} {text!r}", f"write {word}:N with N in pixels, such as {word}:256, or none")
    return int(number)


class ProgressMeter:
    """Shows the progress of the first process on stderr: a bar on a terminal, a line now and then in a log."""

    def __init__(self, unit: str, what: str | None = None) -> None:
        """what: words before the count, such as which codec does what; a long name loses its beginning."""
        what = None if what is None else _shortened(printable(what))
        self._unit, self._what, self._done, self._start = unit, what, 0, time.monotonic()
        first, terminal = rank_and_world()[0] == 0, sys.stderr.isatty()
        self._last_line = self._start if first and not terminal else float("inf")
        self._bar = tqdm(desc=what, unit=unit, disable=not (first and terminal), total=0, leave=False)

    def __enter__(self) -> ProgressMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, count: int, total: int) -> None:
        """count: items done since the last call.
        total: items of this process altogether.
        """
        self._bar.total = total
        self._bar.update(count)
        self._done += count
        if (now := time.monotonic()) >= self._last_line + LINE_EVERY:
            self._last_line = now
            line = tqdm.format_meter(self._done, total, now - self._start, unit=self._unit, prefix=self._what or "")
            print(line, file=sys.stderr, flush=True)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_WORDS else f"…{text[1 - LONGEST_WORDS :]}"
