"""What a run shows on stderr: on a terminal a bar with the losses below it, elsewhere lines; on the main process alone.

Lines that are to stay (validations, warnings) scroll above the bar.
"""

from __future__ import annotations

import math
import sys
import textwrap
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TextIO

from accelerate import Accelerator
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ldm_vae.printable import LONGEST_LINE, printable

LOSSES = ("pixel", "perceptual", "rate", "generator", "discriminator")  # those that are shown
LOSS_LINES = 2  # lines below the bar: on 80 columns the losses take two
GAP, NO_BREAK = "  ", "\xa0"


class Progress:
    """`with Progress(...) as progress:` around the steps of a run. What is logged meanwhile goes above the bar."""

    def __init__(self, accelerator: Accelerator, steps: int, start: int, batch: int) -> None:
        self.main = accelerator.is_main_process
        self.terminal = self.main and sys.stderr.isatty()
        self.steps, self.batch = steps, batch
        off = not self.terminal
        self.bar = tqdm(
            total=steps, initial=start, desc="train", unit="step", position=0, disable=off, dynamic_ncols=True
        )
        self.below = [
            tqdm(bar_format="{desc}", position=1 + i, leave=False, disable=off, dynamic_ncols=True)
            for i in range(LOSS_LINES)
        ]
        self._open = ExitStack()

    def __enter__(self) -> Progress:
        if self.terminal:
            self._open.enter_context(logging_redirect_tqdm())
            self._open.callback(setattr, warnings, "showwarning", warnings.showwarning)
            warnings.showwarning = _show_warning  # else Python's warnings are written into the bar
        return self

    def __exit__(self, *error: object) -> None:
        for line in reversed(self.below):
            line.close()
        self.bar.close()
        self._open.close()

    def advance(self) -> None:
        """One more step is taken."""
        self.bar.update(1)

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """The main losses, images per second and, on a plain stream, the time left."""
        losses = [f"{name} {row[name]:.4g}" for name in LOSSES if name in row]
        rate = row["time/images_per_second"]
        if self.terminal:
            for line, text in zip(self.below, fold([f"{rate:.1f} images/s", *losses], self._columns()), strict=True):
                line.set_description_str(text)
        elif self.main:
            left = (self.steps - step) * self.batch / rate / 60 if rate else math.nan
            self.say(f"step {step}/{self.steps}  {rate:.1f} images/s  {left:.1f} min left  {GAP.join(losses)}")

    def say(self, text: str) -> None:
        """A line that stays, above the bar. On a narrow terminal it is broken between words."""
        if not self.main:
            return
        text = printable(text, LONGEST_LINE)
        if self.terminal:
            text = "\n".join(_wrapped(text, self._columns(), GAP))
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def unpause(self) -> None:
        """After other work than steps, such as a validation: its time says nothing about that of the next steps."""
        if self.terminal:
            self.bar.unpause()

    def _columns(self) -> int:
        return self.bar.format_dict["ncols"] or 80


def fold(words: list[str], columns: int) -> list[str]:
    """LOSS_LINES lines of at most so many columns. No word is broken at its own spaces; the last may lack room."""
    text = GAP.join(word.replace(" ", NO_BREAK) for word in words)
    lines = [line.replace(NO_BREAK, " ") for line in _wrapped(text, columns)]
    return [line[:columns] for line in [*lines, *[""] * LOSS_LINES][:LOSS_LINES]]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As `warnings.showwarning`, above the bars."""
    tqdm.write(warnings.formatwarning(message, category, filename, lineno, line), file=file or sys.stderr, end="")


def _wrapped(text: str, columns: int, indent: str = "") -> list[str]:
    """Lines of whole words: paths and numbers are not broken."""
    return textwrap.wrap(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
