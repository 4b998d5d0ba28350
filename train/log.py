"""The log of a run: metrics.jsonl and warnings.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from ldm_vae.atomic import append, atomic_file
from ldm_vae.documents import LARGE, parse_lines, read_file
from ldm_vae.recipe import Config
from train.sums import RunningSum


class LogConfig(Config):
    """Rows of metrics.jsonl, and who else gets them."""

    every: Annotated[int, Field(gt=0)] = 50
    """Optimizer steps between two rows; the last step is always logged."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Trackers that get the rows too, and the recipe, the warnings and pictures; they must be installed."""


class Meter:
    """Means of scalars since the last row, kept on the device. Values that are not finite are left out."""

    def __init__(self) -> None:
        self.sums: dict[str, RunningSum] = {}  # name -> (sum, count)

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            finite = value.isfinite()
            pair = torch.stack([torch.where(finite, value, 0.0), finite.to(value)])
            if name in self.sums:
                self.sums[name].add(pair)
            else:
                self.sums[name] = RunningSum(pair)

    def local(self) -> Tensor:
        """(names, 2), float64: sum and count of this rank, in the order of `names`."""
        sums = [self.sums[name].total() for name in self.names]
        return torch.stack(sums) if sums else torch.zeros(0, 2, dtype=torch.float64)

    def restore(self, names: Sequence[str], sums: Tensor, device: torch.device) -> None:
        """Goes on from what `local` gave: (names, 2), on the CPU."""
        self.sums = {name: RunningSum.of(pair, device) for name, pair in zip(names, sums, strict=True)}

    @property
    def names(self) -> list[str]:
        return sorted(self.sums)

    def means(self, gathered: Tensor) -> dict[str, float]:
        """Means over steps and ranks, NaN for what was never finite; then the sums start anew.

        gathered: (ranks, names, 2), what `local` returned on all ranks.
        """
        totals = gathered.sum(dim=0).tolist()
        means = {
            name: total / count if count else math.nan for name, (total, count) in zip(self.names, totals, strict=True)
        }
        self.sums = {}
        return means


class MetricsLog:
    """Writes metrics.jsonl and warnings.jsonl. Only the main process writes.

    Values that depend on the clock or the machine are named `time/…`; all others are the same in every equal run.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path, self.warnings = folder / "metrics.jsonl", folder / "warnings.jsonl"
        self.accelerator = accelerator

    def cut(self, step: int) -> None:
        """Drops the rows after `step`, which a killed run logged after its checkpoint, and lines that are no rows."""
        for path in (self.path, self.warnings):
            if not self.accelerator.is_main_process or not path.exists():
                continue
            kept = [json.dumps(row) + "\n" for row in _rows(path) if row["step"] <= step]
            with atomic_file(path) as staged:
                staged.write_text("".join(kept))

    def validations(self) -> list[tuple[int, dict[str, float | None]]]:
        """(step, row) of the validations in the log, for the main process."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return []
        return [(row["step"], row) for row in _rows(self.path) if "validation/images" in row]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Writes one row. Values that are not finite become null, since JSON has no word for them."""
        if self.accelerator.is_main_process:
            clean = {name: value if math.isfinite(value) else None for name, value in row.items()}
            append(self.path, json.dumps({"step": step, **clean}) + "\n")

    def warn(self, step: int, warnings: Sequence[str]) -> None:
        """Writes the warnings about the row of a step, for the report. Without a warning there is no file."""
        if self.accelerator.is_main_process and warnings:
            lines = [json.dumps({"step": step, "warning": warning}) + "\n" for warning in warnings]
            append(self.warnings, "".join(lines))


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a log."""
    data = read_file(path, "move it, and the log starts anew", largest=LARGE)
    return [row for row in parse_lines(data) if row is not None and isinstance(row.get("step"), int)]
