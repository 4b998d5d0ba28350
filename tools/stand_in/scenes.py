"""What is counted: a training step of a recipe, on the stand-in device."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
from accelerate.state import AcceleratorState

from ldm_vae.data.stream.batch import Batch
from ldm_vae.transfer import Courier
from tools.stand_in.record import RECORD, Counts, counts
from train.build import build_accelerator, build_autoencoder, build_run, frozen_networks
from train.recipe import Recipe
from train.step import step_of

# Changes of a recipe, of which the first is the precision.
PRECISIONS = (("precision=float32",), ("precision=bfloat16",), ("precision=bfloat16", "norms=bfloat16"))


def training_step(recipe: Recipe, images: int, side: int) -> Counts:
    """A step in which every loss is on, after one that makes the optimizer's moments. Called with the device on.

    images: of one forward pass; with accumulation there are so many in each.
    side: height and width of the images.
    """
    gc.collect()  # of the run before, if any
    before = RECORD.now
    AcceleratorState._reset_state()  # accelerate keeps the precision of the first run
    accelerator = build_accelerator(recipe)
    autoencoder, recipe = build_autoencoder(recipe)
    run = build_run(recipe, accelerator, autoencoder, frozen_networks(recipe))
    courier, step = Courier(accelerator.device), step_of(recipe)
    for number in (recipe.steps - 2, recipe.steps - 1):
        state = RECORD.now - before
        RECORD.reset()
        batches = [_batch(recipe, images, side) for _ in range(recipe.optimizer.accumulation)]
        step(run, [batch.by(courier, run.dtype) for batch in batches], number)
    return replace(counts(RECORD, state), peak=RECORD.peak - before)


def _batch(recipe: Recipe, images: int, side: int) -> Batch:
    pixels = torch.zeros(images, recipe.data.image.channels, side, side)
    return Batch(pixels, None, [""] * images, torch.arange(images))
