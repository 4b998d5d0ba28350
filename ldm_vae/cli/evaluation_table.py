"""Results of codecs as tables on the terminal: a column a codec, what is missing and why, where protocols differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ldm_vae.evaluation.compare import LEVEL, Difference
from ldm_vae.evaluation.results import Results
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.metrics.image import IMAGE_METRICS

MARK = "*"  # beside a value that has a note


def print_metrics(results: Mapping[str, Results]) -> None:
    """results: by the name of the codec; all of the same metrics."""
    console = Console(markup=False)
    table = Table("metric", "unit")
    for name in results:
        table.add_column(name, justify="right", overflow="fold")
    for metric in next(iter(results.values())).metrics:
        cells = []
        for found in results.values():
            value = found.metrics[metric]
            shown = "missing" if value is None else f"{value:.4f}"
            cells.append(shown + (MARK if metric in found.notes else ""))
        table.add_row(metric, describe_metric(metric).unit, *cells)
    console.print(table)
    for word, field in (("missing", "missing"), (MARK, "notes")):
        alike: dict[tuple[str, str], list[str]] = {}  # metrics by whose and why
        found_by = _shared({name: getattr(found, field) for name, found in results.items()})
        for (metric, reason), names in found_by.items():
            alike.setdefault((_whose(names, results), reason), []).append(metric)
        for (whose, reason), metrics in alike.items():
            line = f"{word} {', '.join(metrics)}{whose}: {reason}"
            console.print(line, soft_wrap=True, highlight=False)


def print_comparisons(first: str, comparisons: Mapping[str, Mapping[str, Difference]], images: int) -> None:
    """comparisons: by the name of the other codec, by metric.   images: that were measured."""
    if not comparisons:
        return
    table = Table("metric", "better", title=f"{first} minus the other, image by image, {LEVEL:.0%} bootstrap interval")
    for name in comparisons:
        table.add_column(f"- {name}", overflow="fold")
    for metric in IMAGE_METRICS:
        cells = [_cell(metric, found.get(metric), images) for found in comparisons.values()]
        if any(cells):
            table.add_row(metric, describe_metric(metric).better, *cells)
    Console(markup=False).print(table)


def print_protocol(results: Mapping[str, Results]) -> None:
    """A line a fact where all codecs share it, else a line a codec."""
    table = Table(show_header=False, title="protocol", title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    facts = _shared({name: found.protocol for name, found in results.items()})
    for (name, shown), names in facts.items():
        table.add_row(name + _whose(names, results), shown)
    Console(markup=False).print(table)


def _cell(metric: str, found: Difference | None, images: int) -> str:
    if found is None:
        return ""
    interval = "" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    some = "" if found.images == images else f" ({found.images} of {images} images)"
    return f"{found.difference:+.4f}{interval} {found.verdict(metric)}{some}"


def _whose(names: list[str], results: Mapping[str, Results]) -> str:
    return "" if len(names) == len(results) else f" ({', '.join(names)})"


def _shared(tables: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """(entry, its text) -> the codecs that say so, entries in the order in which they first come."""
    order = list(dict.fromkeys(entry for table in tables.values() for entry in table))
    shared: dict[tuple[str, str], list[str]] = {}
    for entry in order:
        for name, table in tables.items():
            if entry in table:
                value = table[entry]
                text = json.dumps(value) if isinstance(value, dict) else str(value)
                shared.setdefault((entry, text), []).append(name)
    return shared
