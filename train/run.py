"""A training from its recipe to its end: checks, the lock, the parts of the run, the loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ldm_vae.atomic import remove_abandoned
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import train_batches
from ldm_vae.data.stream.shared_memory import require_shared_memory, shared_bytes
from ldm_vae.devices import choose_device
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.networks.network import Network
from ldm_vae.printable import counted
from train.arithmetic import repeatable
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run, origin_of
from train.checkpoint import prune
from train.compiled import compile_run
from train.health import Health
from train.log import Meter
from train.loop import Loop, due
from train.preempt import Preempted, Preemption
from train.recipe import Recipe, resolve_precision
from train.resume import (
    check_same_data,
    check_same_experiment,
    check_steps,
    latest_checkpoint,
    refuse_other_files,
    write_recipe,
)
from train.snapshot import restore
from train.status import RunLock, Status, write_status
from train.trackers import start_trackers
from train.validate import build_validation

logger = logging.getLogger("train")


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
    check_steps(folder, recipe, checkpoint)
    check_shared_memory(recipe, accelerator)
    with ExitStack() as stack:
        lock_run(stack, folder, accelerator)
        preemption = stack.enter_context(Preemption())
        write_status(folder, "running", main=main)
        try:
            with repeatable(recipe.deterministic, accelerator.device.type):
                train_under_lock(recipe, checkpoint, accelerator, autoencoder, frozen, preemption)
        except BaseException as error:
            status: Status = "preempted" if isinstance(error, Preempted) else "failed"
            try:
                write_status(folder, status, str(error) or type(error).__name__, main=main)
            except (UserError, OSError) as second:  # of the same disk; the user is to read what ended the run
                logger.warning("%s", second)
            raise
        write_status(folder, "done", main=main)
        if main:
            following = f"measure it with `ldm-vae evaluate {folder} SHARDS`"
            if not autoencoder.codec:
                following = f"draw from it with `ldm-vae sample {folder} IMAGES`"
            logger.info("%s: done, step %d; %s", folder, recipe.steps, following)
    accelerator.end_training()


def check_shared_memory(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raises UserError where the data workers of training and validation need more than this machine has free."""
    data, validation = recipe.data, recipe.validation
    needed = shared_bytes(data.image, data.batch // accelerator.num_processes, data.worker_count)
    if data.validation is not None:
        image = data.image.model_copy(update={"crop": validation.crop})
        needed += shared_bytes(image, validation.batch, data.worker_count)
    require_shared_memory(needed, processes=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))


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
    compile_run(run, frozen, recipe)
    if checkpoint is not None:
        check_same_data(checkpoint, index)
        restore(run, meter, health, checkpoint)
        if accelerator.is_main_process:  # what a run left that was stopped right after this checkpoint
            remove_abandoned(checkpoint.folder.parent)
            prune(folder, recipe.checkpoint)
    start = 0 if checkpoint is None else checkpoint.step
    if accelerator.is_main_process:
        write_recipe(folder, recipe)
        logger.info(
            "%s: step %d of %d, %s on %s, %s, %s in %s",
            *(folder, start, recipe.steps, counted(accelerator.num_processes, "process"), accelerator.device.type),
            *(recipe.precision, counted(index.samples, "image"), counted(len(index.shards), "shard")),
        )
        logger.info("device: %s", choose_device().in_words())
        if run.origin is not None and run.origin.scale is not None and recipe.model.train == "all":
            message = "%s: its latents become others than those of %s, whose scale (%s) is not theirs: `ldm-vae stats`"
            logger.warning(message, folder, recipe.model.init_from, run.origin.scale.in_words())
    # A validation that a signal has ended is done again: the checkpoint of its step has nothing measured.
    unmeasured = checkpoint is not None and not checkpoint.meta.get("metrics")
    validate_first = unmeasured and recipe.data.validation is not None and due(start, recipe)
    if start == recipe.steps and not validate_first:
        return
    trackers = start_trackers(recipe, start, accelerator)
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
    loop = Loop(run, recipe, batches, index, validation, meter, health, trackers, preemption, start, validate_first)
    loop.run_to_end()
