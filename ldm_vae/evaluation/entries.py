"""Codecs and baselines that were measured on the same images, and their comparisons, as JSON holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm_vae.evaluation.compare import PairedDifference, compare, differences_to_json, turned
from ldm_vae.evaluation.results import Results


@dataclass(frozen=True)
class Entry:
    """A codec or baseline with its results: a column of the table.

    kept_in: the results.json of the run that it is of; None where it is of no run, or nothing can be written there.
    """

    name: str
    kind: Literal["model", "baseline"]
    results: Results
    kept_in: Path | None = None

    @property
    def rate(self) -> Any:
        """Downsampling and channels in words; a baseline's own words."""
        return self.results.protocol.get("codec")

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.results.per_image]
        return {**self.results.to_json(), "per_image": rows}


class Entries:
    """Entries with their comparisons. A pair is compared once: the interval of many images takes seconds."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self._found: dict[tuple[int, int], dict[str, PairedDifference]] = {}

    def compared(self, first: int, other: int) -> dict[str, PairedDifference]:
        """By metric, the values of one entry minus those of another. Entries go by their places."""
        if first > other:
            return turned(self.compared(other, first))
        if (first, other) not in self._found:
            ours, theirs = (self.entries[place].results.per_image for place in (first, other))
            self._found[first, other] = compare(ours, theirs)
        return self._found[first, other]

    def to_json(self, first: int = 0) -> dict[str, Any]:
        """The results of one entry, with those of the others and the comparisons under keys of their own.

        Baselines have the rate of the first entry, and do not stand beside a codec of another one.
        """
        entry = self.entries[first]
        others = [
            (place, other)
            for place, other in enumerate(self.entries)
            if place != first and (other.kind == "model" or entry.rate == self.entries[0].rate)
        ]
        content = entry.to_json()
        if others:
            content["others"] = [{"name": other.name, "kind": other.kind, **other.to_json()} for _, other in others]
            content["comparisons"] = [
                {"name": other.name, "metrics": differences_to_json(self.compared(first, place))}
                for place, other in others
            ]
        return content
