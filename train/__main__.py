"""python -m train RECIPE [a.b=value ...]: trains a codec, or goes on with the training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ldm_vae.atomic import atomic_file
from ldm_vae.data.index import load_index
from ldm_vae.data.reader import train_batches
from ldm_vae.errors import UserError
from ldm_vae.recipe import load_recipe
from train.build import build_accelerator, build_autoencoder, build_run
from train.dry_run import describe
from train.log import Meter
from train.loop import Loop, Preempted
from train.preempt import PREEMPTED, Preemption
from train.recipe import Recipe
from train.resume import check_same_experiment, latest_checkpoint, write_recipe
from train.snapshot import restore
from train.status import RunLock, write_status
from train.validate import build_validation


def command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, such as configs/demo_cpu.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="changes to it: a.b=value ...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be trained, check the data, stop")] = False,
) -> None:
    """Train a codec by a recipe. Run again, it goes on from its last checkpoint."""
    try:
        config = load_recipe(Recipe, recipe, overrides or [])
        if dry_run:
            describe(config, Console())
            return
        train(config)
    except UserError as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(2)


def train(recipe: Recipe) -> None:
    """Everything from a recipe to the last checkpoint; leaves the reason of its end in status.json."""
    accelerator = build_accelerator(recipe)
    folder = Path(recipe.output)
    with RunLock(folder, main=accelerator.is_main_process), Preemption(recipe.checkpoint.preempt_every) as preemption:
        write_status(folder, "running")
        try:
            train_under_lock(recipe, accelerator, preemption)
        except Preempted as reason:
            write_status(folder, "preempted", str(reason))
            sys.exit(PREEMPTED)
        except BaseException as error:
            write_status(folder, "failed", str(error) or type(error).__name__)
            raise
        write_status(folder, "done")


if __name__ == "__main__":
    typer.run(command)
