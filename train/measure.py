"""The time of a training step on this device: the real step, on an image of the data."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.devices import free_memory
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.transfer import Courier
from train.arithmetic import repeatable
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run
from train.compiled import compile_run
from train.cost import Cost
from train.recipe import Recipe
from train.state import Run
from train.step import step_of

WORTH = 20.0  # seconds that a step may take to be timed with all its images at once


def seconds_per_image(recipe: Recipe, checkpoint: Checkpoint | None, image: Tensor, cost: Cost) -> tuple[float, int]:
    """Seconds that the last step of the run, with every loss on, takes for each image; and the images it was timed on.

    It is timed on one image, after a step to warm up; and again on all images of a forward pass, where these take
    little time and fit into the memory of the GPU, since more images at once are faster.

    checkpoint: which the run continues, if any.
    image: (1, C, H, W), one image of the data.
    cost: what a step costs.
    """
    accelerator = build_accelerator(recipe)
    autoencoder, recipe = build_autoencoder(recipe, checkpoint)
    frozen, recipe = build_frozen(recipe)
    run = build_run(recipe, accelerator, autoencoder, frozen)
    compile_run(run, frozen, recipe)
    device = run.accelerator.device
    with repeatable(recipe.deterministic, device.type):
        _timed(run, recipe, image, 1)
        seconds, images = _timed(run, recipe, image, 1), 1
        free = free_memory(device)
        if cost.images > 1 and seconds * cost.images < WORTH and (free is None or cost.peak < free):
            images = cost.images
            _timed(run, recipe, image, images)
            seconds = _timed(run, recipe, image, images)
    return seconds / images, images


def _timed(run: Run, recipe: Recipe, image: Tensor, images: int) -> float:
    """Seconds of a step on copies of an image."""
    batch = Batch(image.repeat(images, 1, 1, 1), None, [""] * images, torch.arange(images))
    device = run.accelerator.device
    start = time.perf_counter()
    values = step_of(recipe)(run, [batch.by(Courier(device), run.dtype)], recipe.steps - 1)
    float(values["total"])  # waits for the device
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
