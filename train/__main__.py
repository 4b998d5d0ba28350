"""python -m train RECIPE [a.b=value ...]: trains a codec, or continues the training.

python -m train --fields [SECTION]: explains the fields of a recipe.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from torch import nn

from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import train_batches
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.machine import fault_of_machine
from ldm_vae.networks.network import Network
from ldm_vae.ranks import is_first_to_report
from ldm_vae.recipe import load_recipe
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run, origin_of
from train.dry_run import describe_recipe
from train.fields import show_fields
from train.health import Health
from train.log import Meter, start_trackers
from train.loop import Loop, Preempted
from train.preempt import PREEMPTED, Preemption
from train.recipe import Recipe, resolve_precision
from train.resume import check_same_data, check_same_experiment, latest_checkpoint, refuse_other_files, write_recipe
from train.snapshot import restore
from train.status import RunLock, Status, write_status
from train.validate import build_validation

logger = logging.getLogger("train")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train_command(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="YAML recipe, such as configs/demo_cpu.yaml")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="changes to it: a.b=value ...")] = None,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="say what every field means, or those of a SECTION in place of RECIPE, stop"),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be trained, check the data, stop")] = False,
) -> None:
    """Train a codec by a recipe. Run again, it goes on from its last checkpoint."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logger.setLevel(logging.INFO)
    try:
        if fields:
            show_fields([] if recipe is None else [str(recipe), *(overrides or [])])
            return
        if recipe is None:
            context.fail("Missing argument 'RECIPE'.")
        config = load_recipe(Recipe, recipe, overrides or [])
        if dry_run:
            describe_recipe(config)
        else:
            run_training(config)
    except UserError as error:
        tell(str(error))
        sys.exit(2)
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        fault = fault_of_machine(error)
        if fault is None:
            raise
        tell(str(fault))
        sys.exit(2)
    except Preempted as reason:
        tell(f"stopped and saved: {reason}; run it again to go on")
        sys.exit(PREEMPTED)


def tell(message: str) -> None:
    """Prints how a run ended: once, although several ranks may say it."""
    if is_first_to_report(message):
        print(f"train: {message}", file=sys.stderr)


def run_training(recipe: Recipe) -> None:
    """Trains up to the last step of a recipe, and writes to status.json how the run ended.

    Raises Preempted after a signal.
    """
    accelerator = build_accelerator(recipe)
    recipe = resolve_precision(recipe)
    folder, main = Path(recipe.output), accelerator.is_main_process
    checkpoint = latest_checkpoint(folder, accelerator)
    autoencoder, recipe = build_autoencoder(recipe, checkpoint)
    frozen, recipe = build_frozen(recipe)
    refuse_other_files(folder)
    check_same_experiment(folder, recipe)
    with ExitStack() as stack:
        lock_run(stack, folder, accelerator)
        preemption = stack.enter_context(Preemption(recipe.checkpoint.preempt_every))
        write_status(folder, "running", main=main)
        try:
            train_under_lock(recipe, checkpoint, accelerator, autoencoder, frozen, preemption)
        except BaseException as error:
            status: Status = "preempted" if isinstance(error, Preempted) else "failed"
            try:
                write_status(folder, status, str(error) or type(error).__name__, main=main)
            except UserError as second:  # such as a full disk; the user is to read what ended the run
                logger.warning("%s", second)
            raise
        write_status(folder, "done", main=main)
        if main:
            logger.info("%s: done, step %d; measure it with `ldm-vae evaluate %s SHARDS`", folder, recipe.steps, folder)
    accelerator.end_training()


def lock_run(stack: ExitStack, folder: Path, accelerator: Accelerator) -> None:
    """The main process locks the run folder until `stack` closes.

    Raises UserError on all ranks where another trainer holds the lock, so that no rank waits. The status of that
    trainer's run stays as it is.
    """
    refusal = None
    try:
        stack.enter_context(RunLock(folder, main=accelerator.is_main_process))
    except UserError as error:
        refusal = error
    refused = accelerator.reduce(torch.tensor(int(refusal is not None), device=accelerator.device), "sum")
    if refusal is not None:
        raise refusal
    if int(refused):
        raise UserError(f"{folder} cannot be locked", "see the message of the main process")


def train_under_lock(
    recipe: Recipe,
    checkpoint: Checkpoint | None,
    accelerator: Accelerator,
    autoencoder: Network,
    frozen: Mapping[str, nn.Module],
    preemption: Preemption,
) -> None:
    """Builds data and networks, restores the checkpoint, and runs the loop."""
    folder = Path(recipe.output)
    index = load_index(recipe.data.train, cache=folder / "index")
    run, meter, health = build_run(recipe, accelerator, autoencoder, frozen), Meter(), Health(accelerator)
    run = replace(run, origin=origin_of(recipe, checkpoint))
    if checkpoint is not None:
        check_same_data(checkpoint, index)
        restore(run, meter, health, checkpoint)
    start = 0 if checkpoint is None else checkpoint.step
    if accelerator.is_main_process:
        write_recipe(folder, recipe)
        logger.info(
            "%s: step %d of %d, %d process(es) on %s, precision %s, %d images in %d shards",
            *(folder, start, recipe.steps, accelerator.num_processes, accelerator.device, accelerator.mixed_precision),
            *(index.samples, len(index.shards)),
        )
        if run.origin is not None and run.origin.scale is not None and recipe.model.train == "all":
            message = "%s: its latents become others than those of %s, whose scale (%s) is not theirs: `ldm-vae stats`"
            logger.warning(message, folder, recipe.model.init_from, run.origin.scale.in_words())
    start_trackers(folder, accelerator)
    if start >= recipe.steps:
        return
    batches = train_batches(
        recipe.data,
        index,
        recipe.seed,
        start_step=start,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulation=recipe.optimizer.accumulation,
    )
    validation = build_validation(recipe.validation, recipe.data, folder, accelerator, autoencoder)
    Loop(run, recipe, batches, index, validation, meter, health, preemption, start).run_to_end()


if __name__ == "__main__":
    app()
