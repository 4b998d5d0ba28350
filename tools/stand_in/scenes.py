"""What is counted: a training step of a recipe, on the stand-in device and without values, at any size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ldm_vae.data.stream.batch import Batch
from ldm_vae.transfer import Courier
from tools.stand_in.device import stand_in
from tools.stand_in.record import Record
from train.build import build_accelerator, build_autoencoder, build_run, frozen_networks
from train.recipe import Recipe
from train.step import step_of


@dataclass(frozen=True)
class Counts:
    """What one piece of work took.

    waits: times that the host waited for the device, by reason and place; all of them where it was to go on.
    pageable: copies that could not go on beside the host.
    kernels: operations that computed something.
    up, down: bytes copied to the device and from it.
    state: bytes on the device before and after.
    peak: most bytes at once.
    """

    waits: dict[str, int]
    pageable: dict[str, int]
    kernels: int
    up: int
    down: int
    state: int
    peak: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def counts(record: Record, state: int) -> Counts:
    """What has been recorded since the last `reset`.

    state: bytes that lay on the device then.
    """
    return Counts(
        waits=dict(record.waits),
        pageable=dict(record.pageable),
        kernels=record.kernels.total(),
        up=record.up,
        down=record.down,
        state=state,
        peak=record.peak,
    )


def training_step(recipe: Recipe, images: int, side: int) -> Counts:
    """A step in which every loss is on, after one that makes the optimizer's moments.

    images: of one forward pass; with accumulation there are so many in each.
    side: height and width of the images.
    """
    with stand_in(values=False) as record:
        accelerator = build_accelerator(recipe)
        autoencoder, recipe = build_autoencoder(recipe)
        run = build_run(recipe, accelerator, autoencoder, frozen_networks(recipe))
        courier, step = Courier(accelerator.device), step_of(recipe)
        for number in range(recipe.steps - 2, recipe.steps):
            state = record.now
            record.reset()
            step(
                run,
                [_batch(recipe, images, side).by(courier, run.dtype) for _ in range(recipe.optimizer.accumulation)],
                number,
            )
        return counts(record, state)


def _batch(recipe: Recipe, images: int, side: int) -> Batch:
    pixels = torch.zeros(images, recipe.data.image.channels, side, side)
    return Batch(pixels, None, [""] * images, torch.arange(images))
