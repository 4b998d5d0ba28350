"""Gives entries and reasons once where several codecs share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def shared_entries(tables: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """(entry, its text) -> names of the codecs that have it, in the order in which the entries first appear.

    tables: the entries, by name of the codec.
    """
    order = dict.fromkeys(entry for table in tables.values() for entry in table)
    shared: dict[tuple[str, str], list[str]] = {}
    for entry in order:
        for name, table in tables.items():
            if entry in table:
                shared.setdefault((entry, str(table[entry])), []).append(name)
    return shared


def shared_reasons(reasons: Mapping[str, Mapping[str, str]]) -> list[tuple[str, list[str], Sequence[str]]]:
    """Each reason once for all metrics that the same codecs have it for: (reason, metrics, names of the codecs).

    reasons: by name of the codec and of the metric.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (metric, reason), names in shared_entries(reasons).items():
        alike.setdefault((reason, tuple(names)), []).append(metric)
    return [(reason, metrics, names) for (reason, names), metrics in alike.items()]
