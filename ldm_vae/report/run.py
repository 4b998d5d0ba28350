"""Reads a run folder (recipe, status, log, results, diagnostics), and lists what it lacks."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ldm_vae.choices import FORMER_PRECISIONS
from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import INSPECTION_FILE, INSPECTION_FOLDER, Inspection
from ldm_vae.documents import LARGE, parse_lines, read_file, read_json, read_text, read_yaml
from ldm_vae.errors import UserError
from ldm_vae.interop.diffusers import STATISTICS
from ldm_vae.interop.results import RESULTS, Measurement, StoredResults
from ldm_vae.metrics.latent import LatentStatistics
from ldm_vae.report.evaluations import Evaluations, choose_evaluations
from ldm_vae.report.weights import PresentWeights, newest_codec

TRACES = ("recipe.yaml", "metrics.jsonl", "status.json", "checkpoints")  # a folder with none of them is no run
ABOUT_WEIGHTS = (RESULTS, STATISTICS, f"{INSPECTION_FOLDER}/{INSPECTION_FILE}")  # these name the weights they are of
LogRow = dict[str, float | None]  # metric -> value; None where the value was not finite


@dataclass(frozen=True)
class Gap:
    """Something that is missing.

    section: section of the page that says so.
    sentence: what is missing, and why.
    command: the command that makes it; empty where there is none.
    """

    section: str
    sentence: str
    command: str = ""


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds.

    name: the folder as the person gave it.
    recipe, status: empty where there is no such file.
    rows: rows of metrics.jsonl, in order.
    codec: that of the newest whole checkpoint; None where there is none, or no file names weights to compare with.
    weights: its weights.
    evaluations: what was measured on the run.
    inspection_folder: the folder that holds the pictures of the inspection.
    statistics: statistics of the latents.
    warnings: what the trainer warned of.
    broken: number of different training samples that were broken and replaced, since the run began.
    gaps: what is missing or damaged.
    """

    path: Path
    name: str
    recipe: dict[str, Any]
    recipe_text: str
    status: dict[str, Any]
    rows: list[LogRow]
    codec: LatentCodec | None
    weights: PresentWeights | None
    evaluations: Evaluations
    inspection: Inspection | None
    inspection_folder: Path
    statistics: LatentStatistics | None
    warnings: list[str]
    broken: int
    gaps: list[Gap] = field(default_factory=list)

    @property
    def steps(self) -> int | None:
        """The last step of the log; None where there is no log."""
        return max((int(row["step"]) for row in self.rows if row.get("step") is not None), default=None)  # type: ignore[arg-type]

    @property
    def results(self) -> Measurement | None:
        """The newest measurement of the present weights."""
        return self.evaluations.current

    @property
    def validation_shards(self) -> str | None:
        shards = section(self.recipe, "data").get("validation")
        return shards if isinstance(shards, str) else None

    def last_step(self, prefix: str) -> int | None:
        """The step of the newest row with a value whose name begins so."""
        having = (row for row in reversed(self.rows) if any(name.startswith(prefix) for name in row))
        return next((int(row["step"] or 0) for row in having), None)

    def last(self, name: str) -> float | None:
        """The newest value of a metric in the log."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)


def read_run(name: str, shards: str | None = None) -> RunFolder:
    """Reads the run in the folder `name`. What is missing or damaged becomes a gap.

    shards: shards in the commands that make what is missing; default: those of the recipe.

    Raises UserError where `name` is no run.
    """
    path = Path(name)
    if not path.is_dir() or not any((path / trace).exists() for trace in TRACES):
        what = f"{name} is no run" if path.is_dir() else f"run {name} not found"
        raise UserError(what, "give a folder that `python -m train` wrote, such as runs/demo")
    gaps: list[Gap] = []
    recipe, text = _read_recipe(path, gaps)
    given = shards or section(recipe, "data").get("validation")
    quoted = shlex.quote(given) if isinstance(given, str) else "SHARDS"
    run = shlex.quote(name)
    rows = _read_rows(path / "metrics.jsonl", gaps)
    codec = _read_codec(path)
    weights = None if codec is None else PresentWeights.of(codec)
    evaluations = _read_evaluations(path / RESULTS, weights, gaps, f"ldm-vae evaluate {run} {quoted}")
    inspection = _read_inspection(path / INSPECTION_FOLDER, gaps, f"ldm-vae inspect {run} {quoted}")
    train = section(recipe, "data").get("train")
    stats = f"ldm-vae stats {run} {shlex.quote(train) if isinstance(train, str) else 'SHARDS'} --write"
    statistics = _read_statistics(path / STATISTICS, gaps, stats)
    status = _read_status(path / "status.json", gaps)
    warnings = _read_warnings(path / "warnings.jsonl", gaps)
    return RunFolder(
        path=path,
        name=name,
        recipe=recipe,
        recipe_text=text,
        status=status,
        rows=rows,
        codec=codec,
        weights=weights,
        evaluations=evaluations,
        inspection=inspection,
        inspection_folder=path / INSPECTION_FOLDER,
        statistics=statistics,
        warnings=warnings,
        broken=_count_broken(path / "broken.jsonl", gaps),
        gaps=gaps,
    )


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """values[name] where it is a mapping, else {}."""
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _read_recipe(path: Path, gaps: list[Gap]) -> tuple[dict[str, Any], str]:
    file = path / "recipe.yaml"
    try:
        recipe, text = read_yaml(file), read_text(file, "put it back")
    except UserError as error:
        there = file.exists()
        gaps.append(Gap("recipe", f"The recipe cannot be shown: {error}." if there else "The run has no recipe.yaml."))
        return {}, ""
    if isinstance(precision := recipe.get("precision"), str):  # runs of earlier versions differ by the word alone
        recipe["precision"] = FORMER_PRECISIONS.get(precision, precision)
    return recipe, text


def _is_step(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_rows(path: Path, gaps: list[Gap]) -> list[LogRow]:
    """The rows of the log. Damaged lines are left out: a run that is killed while writing leaves half a line."""
    if not path.is_file():
        gaps.append(Gap("training", "There is no metrics.jsonl, so there are no curves.", "python -m train RECIPE"))
        return []
    rows: list[LogRow] = []
    damaged = 0
    for row in _read_json_lines(path, gaps):
        if _is_step(step := row.get("step")):
            rows.append({name: _finite_number(value) for name, value in row.items()} | {"step": step})
        else:
            damaged += 1
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        gaps.append(
            Gap("training", f"{lines} of metrics.jsonl cannot be read and {'is' if damaged == 1 else 'are'} left out.")
        )
    elif not rows:
        gaps.append(Gap("training", "metrics.jsonl is empty: no row has been logged yet."))
    return rows


def _read_warnings(path: Path, gaps: list[Gap]) -> list[str]:
    """The last warning of each kind, with how often it was given."""
    by_kind: dict[str, list[tuple[int, str]]] = {}
    if not path.is_file():  # a run without warnings has no such file
        return []
    for content in _read_json_lines(path, gaps):
        step, text = content.get("step"), content.get("warning")
        if _is_step(step) and isinstance(text, str):
            kind = "".join(c for c in text if not c.isdigit())  # warnings of one kind differ only in their numbers
            by_kind.setdefault(kind, []).append((step, text))
    return [
        f"Step {same[-1][0]}: {same[-1][1]}" + (f" (and {len(same) - 1} times before)" if len(same) > 1 else "")
        for same in by_kind.values()
    ]


def _read_json_lines(path: Path, gaps: list[Gap]) -> Iterator[dict[str, Any]]:
    """The object in each line; an empty one for a line that holds none."""
    try:
        data = read_file(path, "move it", largest=LARGE)
    except UserError as error:
        gaps.append(Gap("training", f"{path.name} cannot be shown: {error}."))
        return
    yield from (content or {} for content in parse_lines(data))


def _finite_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _read_status(path: Path, gaps: list[Gap]) -> dict[str, Any]:
    try:
        return read_json(path, "move it")
    except FileNotFoundError:
        return {}
    except UserError:
        gaps.append(Gap("summary", "status.json cannot be read, so it is unknown how the run ended."))
        return {}


def _count_broken(path: Path, gaps: list[Gap]) -> int:
    """The number of different samples in broken.jsonl. Each start of the trainer writes those that it meets."""
    if not path.is_file():  # a run without broken samples has no such file
        return 0
    rows = _read_json_lines(path, gaps)
    return len({(str(row["url"]), str(row["key"])) for row in rows if "url" in row and "key" in row})


def _read_codec(path: Path) -> LatentCodec | None:
    if not any((path / name).exists() for name in ABOUT_WEIGHTS):  # a checkpoint may take long to read
        return None
    try:
        return newest_codec(path)
    except UserError:  # the gallery says why
        return None


def _read_evaluations(path: Path, weights: PresentWeights | None, gaps: list[Gap], command: str) -> Evaluations:
    try:
        found = choose_evaluations(StoredResults.read(path), weights)
    except FileNotFoundError:
        gaps.append(Gap("evaluation", "This codec has not been evaluated: there is no results.json.", command))
        return Evaluations()
    except UserError as error:
        gaps.append(Gap("evaluation", f"The evaluation cannot be shown: {error}.", command))
        return Evaluations()
    if found.current is None:
        gaps.append(Gap("evaluation", found.sentence, command))
    elif not found.current.per_image:
        gaps.append(Gap("images", "results.json holds no numbers of single images.", command))
    return found


def _read_statistics(path: Path, gaps: list[Gap], command: str) -> LatentStatistics | None:
    if not path.is_file():
        gaps.append(Gap("latents", "The latents have not been measured, so their scale is unknown.", command))
        return None
    try:
        return LatentStatistics.read(path)
    except UserError as error:
        gaps.append(Gap("latents", f"The statistics of the latents cannot be shown: {error}.", command))
        return None


def _read_inspection(folder: Path, gaps: list[Gap], command: str) -> Inspection | None:
    try:
        return Inspection.read(folder)
    except UserError as error:
        there = (folder / INSPECTION_FILE).exists()
        sentence = (
            f"The diagnostics cannot be shown: {error.what}." if there else "This latent space has not been inspected."
        )
        gaps.append(Gap("diagnostics", sentence, command))
        return None
