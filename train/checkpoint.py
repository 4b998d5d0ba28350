"""When a run saves and which checkpoints it keeps. The format is `ldm_vae/interop/checkpoint.py`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ldm_vae.atomic import find_foreign, remove_folder
from ldm_vae.interop.checkpoint import SAVED, Checkpoint
from ldm_vae.recipe import Config

logger = logging.getLogger("train")


class CheckpointConfig(Config):
    """When a run saves, and which checkpoints it keeps."""

    every: int = Field(default=1000, ge=1)
    """Optimizer steps between two saves; the last step is always saved."""

    keep_last: int = Field(default=2, ge=1)
    """Number of newest checkpoints that are kept."""

    keep_every: int = Field(default=0, ge=0)
    """In optimizer steps: checkpoints at multiples of it stay for good; 0: none."""

    best: str | None = None
    """Name in the log, such as validation/lpips_vgg, whose best checkpoint stays; null: none."""

    mode: Literal["min", "max"] = "min"
    """Whether the best value is the lowest or the highest."""

    @model_validator(mode="before")
    @classmethod
    def _drop_preempt_every(cls, values: Any) -> Any:
        """Recipes of 0.1.0 say how often ranks look for a signal to stop; now they do before every batch."""
        return {k: v for k, v in values.items() if k != "preempt_every"} if isinstance(values, Mapping) else values


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written."""
    return run / "checkpoints" / f"step_{step:08d}"


def prune(run: Path, config: CheckpointConfig) -> list[Path]:
    """Deletes the checkpoints that `config` does not keep, and returns their folders.

    One process calls this after each save. It deletes only what is older than the newest whole checkpoint, and never
    that one or the best one. The best one is chosen by meta["metrics"] {name: value}: the validation at the step of the
    checkpoint itself. Checkpoints without it are not considered. A checkpoint that holds another file than we write
    stays, with a warning.
    """
    newest = Checkpoint.latest(run)  # reads the files, so that a damaged save does not make older ones go
    if newest is None:
        return []
    # Later ones are damaged. They stay: training may replace them, or a person may want to look at them.
    past = [checkpoint for checkpoint in Checkpoint.all(run) if checkpoint.step <= newest.step]
    kept: set[int | None] = {checkpoint.step for checkpoint in past[-config.keep_last :]}
    kept.add(best_step(past, config))
    if config.keep_every:
        kept |= {checkpoint.step for checkpoint in past if checkpoint.step % config.keep_every == 0}
    unwanted = []
    for checkpoint in past:
        if checkpoint.step not in kept:
            if (other := next(find_foreign(checkpoint.folder, SAVED), None)) is not None:
                logger.warning("%s stays, for it holds %s", checkpoint.folder, other.name)
                continue
            remove_folder(checkpoint.folder)
            unwanted.append(checkpoint.folder)
    return unwanted


def best_step(checkpoints: Sequence[Checkpoint], config: CheckpointConfig) -> int | None:
    """The step of the best checkpoint by `config`, the earliest of equals; None where no checkpoint has the metric."""
    if config.best is None:
        return None
    sign = 1.0 if config.mode == "min" else -1.0
    scores = [
        (sign * value, checkpoint.step)
        for checkpoint in checkpoints
        if (value := checkpoint.meta.get("metrics", {}).get(config.best)) is not None
    ]
    return min((score for score in scores if not math.isnan(score[0])), default=(math.inf, None))[1]
