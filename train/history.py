"""The validations of a run in words: a line for each, with the change since the one before, and the best of all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.printable import counted

Row = Mapping[str, float | None]  # of metrics.jsonl: null is what was not finite


class History:
    """What was measured at each validation so far, by earlier launches too."""

    def __init__(self, metrics: Sequence[str], earlier: Iterable[tuple[int, Row]]) -> None:
        """
        metrics: names of what is measured, in the order in which they are shown.
        earlier: (step, row) of the validations before this launch, in order.
        """
        self.metrics = metrics
        self.titles = short_titles(metrics)
        self.last: dict[str, float] = {}
        self.best: dict[str, tuple[float, int]] = {}  # name -> value, step; the earliest of equals
        for step, row in earlier:
            self._add(step, self._measured(row))

    def line(self, step: int, row: Row, picture: str) -> str:
        """The line about a new validation.

        picture: where its pictures lie; empty where there are none.
        """
        values, before = self._measured(row), self.last
        parts = [
            f"{self.titles[name]} {_rounded(name, value)}"
            + (f" ({_rounded(name, value - before[name], sign='+')})" if name in before else "")
            for name, value in values.items()
        ] or ["nothing could be measured"]
        self._add(step, values)
        if lost := row.get("validation/left_out"):
            parts.append(f"without {counted(int(lost), 'broken image')}")
        return "  ".join([f"validation {step}: {parts[0]}", *parts[1:], *([picture] if picture else [])])

    def best_line(self) -> str:
        """The best value of each metric and its step; empty where nothing was measured."""
        parts = [
            f"{self.titles[name]} {_rounded(name, value)} at step {step}" for name, (value, step) in self.best.items()
        ]
        return f"best: {', '.join(parts)}" if parts else ""

    def _measured(self, row: Row) -> dict[str, float]:
        values = {name: row.get(f"validation/{name}") for name in self.metrics}
        return {
            name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
        }

    def _add(self, step: int, values: dict[str, float]) -> None:
        self.last = values or self.last
        for name, value in values.items():
            sign = -1 if describe_metric(name).better == "lower" else 1
            if name not in self.best or sign * value > sign * self.best[name][0]:
                self.best[name] = value, step


def short_titles(metrics: Iterable[str]) -> dict[str, str]:
    """Names of metrics -> their titles, without the network in brackets where one network is meant alone."""
    titles = {name: describe_metric(name).title for name in metrics}
    short = {name: title.split(" (")[0] for name, title in titles.items()}
    words = list(short.values())
    return {name: word if words.count(word) == 1 else titles[name] for name, word in short.items()}


def _rounded(name: str, value: float, sign: str = "") -> str:
    """Decibels to hundredths, values of a unit range to thousandths."""
    return f"{value:{sign}.{2 if describe_metric(name).unit == 'dB' else 3}f}"
