"""The log of a run: metrics.jsonl, accelerate's trackers, a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from ldm_vae.atomic import append, atomic_file
from ldm_vae.documents import LARGE, parse_lines, read_file, read_text
from ldm_vae.errors import UserError
from ldm_vae.recipe import Config

PROGRESS_LOSSES = ("pixel", "perceptual", "rate", "generator", "discriminator")  # losses beside the progress bar


class LogConfig(Config):
    """Rows of metrics.jsonl, and who else gets them."""

    every: Annotated[int, Field(gt=0)] = 50
    """Optimizer steps between two rows; the last step is always logged."""

    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Trackers that get the rows too, through accelerate; they must be installed."""


def start_trackers(folder: Path, accelerator: Accelerator) -> None:
    """Starts the trackers. RUN/tracker_id keeps the run's name there, so that a resumed run continues under it."""
    path = folder / "tracker_id"
    if accelerator.is_main_process and not path.exists():
        with atomic_file(path) as stage:
            stage.write_text(f"{folder.name}-{secrets.token_hex(4)}")
    name = read_text(path, "remove it, and the tracker starts a new run") if accelerator.is_main_process else ""
    # wandb's own default is the current folder; trackio keeps its files in the user's cache.
    wandb = {"id": name, "name": folder.name, "resume": "allow", "dir": str(folder)}
    accelerator.init_trackers("ldm_vae", init_kwargs={"wandb": wandb, "trackio": {"name": name, "resume": "allow"}})


class Meter:
    """Means of scalars since the last row, kept on the device. Values that are not finite are left out."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # name -> (sum, count), float64

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            finite = value.isfinite()
            pair = torch.stack([torch.where(finite, value, 0.0), finite.to(value)]).double()
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def gather(self, accelerator: Accelerator) -> Tensor:
        """(ranks, names, 2): sum and count of every rank, in the order of `names`."""
        local = torch.stack([self.sums[name] for name in self.names])
        gathered: Tensor = accelerator.gather(local[None])
        return gathered

    @property
    def names(self) -> list[str]:
        return sorted(self.sums)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and ranks, NaN for what was never finite; then the sums start anew. All ranks must call."""
        if not self.sums:
            return {}
        totals = self.gather(accelerator).sum(dim=0).tolist()
        means = {
            name: total / count if count else math.nan for name, (total, count) in zip(self.names, totals, strict=True)
        }
        self.sums = {}
        return means


class MetricsLog:
    """Writes metrics.jsonl, mirrors it to the trackers, and writes warnings.jsonl. Only the main process writes.

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
            data = read_file(path, "move it, and the log starts anew", largest=LARGE)
            rows = [row for row in parse_lines(data) if row is not None and isinstance(row.get("step"), int)]
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= step]
            with atomic_file(path) as staged:
                staged.write_text("".join(kept))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Writes one row. Values that are not finite become null, since JSON has no word for them."""
        if self.accelerator.is_main_process:
            clean = {name: value if math.isfinite(value) else None for name, value in row.items()}
            append(self.path, json.dumps({"step": step, **clean}) + "\n")
        try:
            self.accelerator.log(dict(row), step=step)
        except OSError as error:
            raise UserError(f"a tracker cannot write ({error})", "mend that, or set log.trackers: []") from error

    def warn(self, step: int, warnings: Sequence[str]) -> None:
        """Writes the warnings about the row of a step, for the report. Without a warning there is no file."""
        if self.accelerator.is_main_process and warnings:
            lines = [json.dumps({"step": step, "warning": warning}) + "\n" for warning in warnings]
            append(self.warnings, "".join(lines))


class TrainingProgress:
    """A bar on a terminal, one line per row elsewhere; nothing on ranks other than the main one."""

    def __init__(self, accelerator: Accelerator, steps: int, start: int, batch: int) -> None:
        self.main = accelerator.is_main_process
        self.terminal = self.main and sys.stderr.isatty()
        self.steps = steps
        self.batch = batch
        self.bar = tqdm(total=steps, initial=start, desc="train", unit="step", disable=not self.terminal)

    def advance(self) -> None:
        self.bar.update(1)

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """The main losses, images per second and, on a plain stream, the time left."""
        losses = {name: f"{row[name]:.4g}" for name in PROGRESS_LOSSES if name in row}
        rate = row["time/images_per_second"]
        if self.terminal:
            self.bar.set_postfix({"images/s": f"{rate:.1f}", **losses})
        elif self.main:
            left = (self.steps - step) * self.batch / rate / 60 if rate else math.nan
            text = "  ".join(f"{name} {value}" for name, value in losses.items())
            print(
                f"step {step}/{self.steps}  {rate:.1f} images/s  {left:.1f} min left  {text}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()
