"""What to do where a step does not fit into memory: said in a line, with the values that make it fit."""

from __future__ import annotations

from collections.abc import Callable

from train.build import build_autoencoder
from train.cost import Cost, count_step
from train.recipe import Recipe

USABLE = 0.9  # share of a device's memory that tensors can take: libraries and gaps take the rest


def remedy(recipe: Recipe, size: tuple[int, int], world: int, memory: int | None) -> str:
    """What to change in a recipe whose step did not fit.

    size: (H, W) of the images.
    world: number of processes.
    memory: bytes of the device; None where nobody knows.
    """
    autoencoder, recipe = build_autoencoder(recipe, device="meta")

    def count(images: int) -> Cost:
        return count_step(recipe, autoencoder, size, images)

    accumulation = fitting(recipe, count, world, memory)
    words = []
    if accumulation is not None:
        words.append(f"optimizer.accumulation={accumulation} (the batch stays {recipe.data.batch})")
    if not recipe.model.gradient_checkpointing:
        words.append("model.gradient_checkpointing=true")
    last = "a smaller data.image.crop"
    return f"set {', '.join([*words, f'or {last}'])}" if words else f"set {last}"


def fitting(recipe: Recipe, count: Callable[[int], Cost], world: int, memory: int | None) -> int | None:
    """The least number of micro-batches of which each fits, or the largest possible; None where a step has one image.

    count: images of a forward pass -> what a step of them costs.
    """
    each = recipe.data.batch // world  # images of an optimizer step on a process
    now = recipe.optimizer.accumulation
    larger = [parts for parts in range(2 * now, each + 1) if each % parts == 0]
    if not larger or memory is None:
        return larger[0] if larger else None
    return next((parts for parts in larger if fits(count(each // parts), memory)), larger[-1])


def fits(cost: Cost, memory: int | None) -> bool:
    """Whether a step fits into a device of so many bytes; true where nobody knows how many it has."""
    return memory is None or cost.peak <= USABLE * memory
