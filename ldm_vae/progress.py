"""The progress of long work on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from ldm_vae.printable import printable
from ldm_vae.ranks import rank_and_world

LONGEST_WORK = 40  # characters before a bar, so that 80 columns hold both
LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


class ProgressMeter:
    """Shows the progress of the first process on stderr: a bar on a terminal, a line now and then in a log."""

    def __init__(self, unit: str, work: str = "") -> None:
        """
        unit: what is counted, in the singular.
        work: precedes the bar, such as which codec does what; its end, where it is long. Empty where a command does one
            thing only.
        """
        work = printable(work)
        work = work if len(work) <= LONGEST_WORK else f"…{work[1 - LONGEST_WORK :]}"
        self._unit, self._work, self._done, self._start = unit, work, 0, time.monotonic()
        first, terminal = rank_and_world()[0] == 0, sys.stderr.isatty()
        self._last_line = self._start if first and not terminal else float("inf")
        self._bar = tqdm(
            desc=work, unit=unit, disable=not (first and terminal), total=0, leave=False, dynamic_ncols=True
        )

    def __enter__(self) -> ProgressMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, count: int, total: int) -> None:
        """count: items done since the last call.
        total: items of this process altogether.
        """
        if self._bar.total != total:
            self._bar.total = total
            self._bar.refresh()
        self._bar.update(count)
        self._done += count
        if (now := time.monotonic()) >= self._last_line + LINE_EVERY:
            self._last_line = now
            line = tqdm.format_meter(self._done, total, now - self._start, unit=self._unit, prefix=self._work)
            print(line, file=sys.stderr, flush=True)
