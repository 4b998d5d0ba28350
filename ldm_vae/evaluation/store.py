"""Keeps what was measured on a run's codec in the run's results.json, beside what was measured before.

A measurement takes the place of an earlier one of the same weights on the same data by the same protocol; metrics and
baselines that it did not measure stay, if the versions of what measures are the same. A baseline that it did measure
replaces the earlier one whole. Any other measurement is added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ldm_vae.atomic import NO_ACCESS, atomic_file, require_writable
from ldm_vae.documents import DamagedFile
from ldm_vae.errors import UserError
from ldm_vae.interop.load import ModelSource
from ldm_vae.interop.results import (
    RESULTS,
    RESULTS_FORMAT,
    RESULTS_VERSION,
    VERSIONS,
    Measurement,
    StoredResults,
    comparable,
)
from ldm_vae.locks import exclusive

LOCK = ".results.lock"  # beside the file; it stays, and is empty
UNREAD = {"others": {"__all__": {"per_image"}}}  # of another run its own file holds them, and comparisons of all


def results_file(source: ModelSource) -> Path | None:
    """Where the measurements of a codec are kept: in the run that it is of, also if it is an old checkpoint of it.

    None for what is no run: an export, a folder of others, a model of the Hub.
    """
    return source.folder / RESULTS if source.kind == "run" and source.folder is not None else None


def reason_not_to_write(path: Path) -> str | None:
    """Why nothing may be kept in this file: it or its folder is read-only; None where it can be written.

    To be asked before the work. Raises UserError for a damaged file, which is never replaced, and for a full disk.
    """
    try:
        StoredResults.read(path)
        if not os.access(path, os.W_OK):
            return "the file is read-only"
    except FileNotFoundError:
        pass
    try:
        require_writable(path)
    except UserError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in NO_ACCESS:
            raise
        return f"its folder cannot be written ({cause.strerror})"
    return None


def refuse_results_of_others(path: Path, kept: list[Path]) -> None:
    """Raises UserError where `path` is the results.json of a run that is not measured now: it would lose what it holds.

    Also where a newer version of ldm_vae wrote it.

    kept: the files of the runs that are measured.
    """
    try:
        stored = path.resolve() not in {file.resolve() for file in kept} and StoredResults.read(path).ours
    except (DamagedFile, OSError):  # no file, or another one
        return
    if stored:
        raise UserError(f"{path} keeps the measurements of another run", "give another name to --json")


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Adds a measurement to the file; what another process adds meanwhile stays.

    content: what `--json` writes with this codec as the first.
    Raises UserError for a damaged file, and where it cannot be written.
    """
    new = Measurement.model_validate({"measured": datetime.now(UTC).isoformat(timespec="seconds"), **content})
    with exclusive(path.with_name(LOCK)):
        try:
            earlier = StoredResults.read(path).measurements
        except FileNotFoundError:
            earlier = []
        same = next((one for one in earlier if _same(one, new)), None)
        entries = [one for one in earlier if not _same(one, new)]
        document = {"format": RESULTS_FORMAT, "version": RESULTS_VERSION}
        document |= _plain(new if same is None else _completed(new, same), exclude=UNREAD)
        document["entries"] = [_plain(one) for one in entries]
        with atomic_file(path) as stage:
            stage.write_text(json.dumps(document, indent=1) + "\n")


def _same(one: Measurement, other: Measurement) -> bool:
    return one.weights is not None and one.weights == other.weights and comparable(one, other)


def _plain(measurement: Measurement, exclude: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return measurement.model_dump(mode="json", exclude_unset=True, exclude=exclude)


def _completed(new: Measurement, same: Measurement) -> Measurement:
    """`new` with the values and baselines that only `same` has: of the same weights, data, protocol and versions.

    A metric that could not be measured now keeps its earlier value. A baseline that was measured now replaces the
    earlier one whole, because the codec's differences to it are of one measurement.
    """
    rows = {row.key: row for row in same.per_image}
    if rows.keys() != {row.key for row in new.per_image} or any(
        same.protocol.get(name) != new.protocol.get(name) for name in VERSIONS
    ):
        return new
    now = new.metrics
    kept = {name for name, old in same.metrics.items() if name not in now or (now[name] is None and old is not None)}
    measured = {other.name for other in new.others}
    baselines = [other for other in same.others if other.kind == "baseline" and other.name not in measured]
    if not kept and not baselines:  # the same command again leaves the same file
        return new
    parts: dict[str, Any] = {}
    for part in ("metrics", "missing", "notes"):
        parts[part] = _joined(getattr(same, part), getattr(new, part), kept)
    networks = [protocol.get("metric_weights") for protocol in (same.protocol, new.protocol)]
    weights = {name: value for part in networks if isinstance(part, dict) for name, value in part.items()}
    parts["protocol"] = same.protocol | new.protocol | {"metric_weights": weights}
    parts["per_image"] = [
        row.model_copy(
            update={
                "values": _joined(rows[row.key].values, row.values, kept),
                "missing": _joined(rows[row.key].missing, row.missing, kept),
            }
        )
        for row in new.per_image
    ]
    parts["others"] = [*new.others, *baselines]
    kept_names = {other.name for other in baselines}
    parts["comparisons"] = [*new.comparisons, *(one for one in same.comparisons if one.name in kept_names)]
    return new.model_copy(update=parts)


def _joined(earlier: Mapping[str, Any], now: Mapping[str, Any], kept: Collection[str]) -> dict[str, Any]:
    """By metric: of those that are kept what was there, of the others what there is now."""
    rest = {name: value for name, value in now.items() if name not in kept}
    return {name: value for name, value in earlier.items() if name in kept} | rest
