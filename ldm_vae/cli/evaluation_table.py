"""Prints the results of codecs as tables: metrics, comparisons and protocols, with a column for each codec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ldm_vae.choices import IMAGE_METRICS
from ldm_vae.evaluation.compare import CONFIDENCE, PairedDifference
from ldm_vae.evaluation.results import Results
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.printable import printable

MARK = "*"  # beside a value that has a note


def print_metrics(results: Mapping[str, Results]) -> None:
    """results: results of the same metrics, by name of the codec."""
    console = Console(markup=False)
    table = Table("metric", "unit")
    for name in results:
        table.add_column(printable(name), justify="right", overflow="fold")
    for metric in next(iter(results.values())).metrics:
        cells = []
        for one in results.values():
            value = one.metrics[metric]
            shown = "missing" if value is None else f"{value:.4f}"
            cells.append(shown + (MARK if metric in one.notes else ""))
        table.add_row(metric, describe_metric(metric).unit, *cells)
    console.print(table)
    for word, field in (("missing", "missing"), (MARK, "notes")):
        alike: dict[tuple[str, str], list[str]] = {}  # (codecs, reason) -> metrics
        reasons = _shared({name: getattr(one, field) for name, one in results.items()})
        for (metric, reason), names in reasons.items():
            alike.setdefault((_whose(names, results), reason), []).append(metric)
        for (whose, reason), metrics in alike.items():
            line = f"{word} {', '.join(metrics)}{whose}: {reason}"
            console.print(printable(line), soft_wrap=True, highlight=False)


def print_comparisons(first: str, comparisons: Mapping[str, Mapping[str, PairedDifference]], images: int) -> None:
    """comparisons: differences by metric, by name of the other codec.
    images: number of images that were measured.
    """
    if not comparisons:
        return
    table = Table(
        "metric",
        "better",
        title=f"{printable(first)} minus the other, image by image, {CONFIDENCE:.0%} bootstrap interval",
    )
    for name in comparisons:
        table.add_column(printable(f"- {name}"), overflow="fold")
    for metric in IMAGE_METRICS:
        cells = [_cell(metric, one.get(metric), images) for one in comparisons.values()]
        if any(cells):
            table.add_row(metric, describe_metric(metric).better, *cells)
    Console(markup=False).print(table)


def print_protocol(results: Mapping[str, Results]) -> None:
    """Prints an entry of the protocol once where all codecs share it, else once for each value."""
    table = Table(show_header=False, title="protocol", title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    entries = _shared({name: one.protocol for name, one in results.items()})
    for (name, shown), names in entries.items():
        table.add_row(printable(name + _whose(names, results)), printable(shown))
    Console(markup=False).print(table)


def _cell(metric: str, paired: PairedDifference | None, images: int) -> str:
    if paired is None:
        return ""
    interval = "" if paired.low is None else f" [{paired.low:+.4f}, {paired.high:+.4f}]"
    some = "" if paired.images == images else f" ({paired.images} of {images} images)"
    return f"{paired.difference:+.4f}{interval} {paired.verdict(metric)}{some}"


def _whose(names: list[str], results: Mapping[str, Results]) -> str:
    return "" if len(names) == len(results) else f" ({', '.join(names)})"


def _shared(tables: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """(entry, its text) -> names of the codecs that have it, in the order in which the entries first appear."""
    order = list(dict.fromkeys(entry for table in tables.values() for entry in table))
    shared: dict[tuple[str, str], list[str]] = {}
    for entry in order:
        for name, table in tables.items():
            if entry in table:
                value = table[entry]
                text = json.dumps(value) if isinstance(value, dict) else str(value)
                shared.setdefault((entry, text), []).append(name)
    return shared
