"""A description of what a recipe would train: what it changes, what a step costs, and a look at the data.

It trains nothing. Networks have shapes alone, unless it is to measure; a model that `init_from` names is read, from the
Hub where need be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.syntax import Syntax
from torch import nn

from ldm_vae.data.shards.index import Index, load_index
from ldm_vae.data.stream.reader import train_batches, validation_batches
from ldm_vae.devices import choose_device, local_device, total_memory
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.printable import counted, printable, say
from ldm_vae.quantities import DAY, binary_size, duration
from ldm_vae.recipe import as_yaml
from ldm_vae.waiting import usable_cores
from train.build import build_adversaries, build_autoencoder, check_installed
from train.cost import Cost, count_step
from train.launch import check_launch
from train.look import LOOKED_AT, SAMPLED, Look, look_at_images
from train.measure import seconds_per_image
from train.memory import fits, remedy
from train.recipe import Recipe, resolve_precision
from train.resume import check_same_data, check_same_experiment, check_steps, refuse_other_files
from train.validate import validation_data

LONG = 30 * DAY  # seconds; a run that takes longer is said to
CORE = 256e9  # operations a second that no core of a CPU exceeds in float32: 64 in a cycle (AVX-512), 4 GHz


def describe_recipe(recipe: Recipe, changed: Mapping[str, Any] | None = None, *, measure: bool = False) -> None:
    """Prints the description. Reads images from all over the training data, and one of the validation data.

    changed: the fields to show, as `ldm_vae.recipe.changes` names them; None shows all.
    measure: looks at more images, and takes some steps on this device.
    Raises UserError for what training would refuse.
    """
    check_launch(recipe)
    recipe = resolve_precision(recipe)
    folder = Path(recipe.output)
    checkpoint = Checkpoint.latest(folder)
    autoencoder, recipe = build_autoencoder(recipe, checkpoint, device="meta")
    refuse_other_files(folder)
    check_same_experiment(folder, recipe)
    check_steps(folder, recipe, checkpoint)
    index = load_index(recipe.data.train)
    if checkpoint is not None:
        check_same_data(checkpoint, index)
    at_once = recipe.data.batch // recipe.optimizer.accumulation
    _check_batch(recipe, index)
    look = look_at_images(recipe, index, SAMPLED if measure else LOOKED_AT)
    latent = autoencoder.latent_shape(look.first)[1:]
    cost = count_step(recipe, autoencoder, (look.first.shape[2], look.first.shape[3]), at_once)

    _show(recipe, changed)
    say(f"autoencoder: {_parameters(autoencoder)}, f = {recipe.model.factor}")
    for adversary in build_adversaries(recipe):
        with torch.device("meta"):
            say(f"{adversary.name}: {_parameters(adversary.build(recipe.model))}")
    ratio = look.first[0].numel() / math.prod(latent)
    say(f"image {tuple(look.first.shape[1:])} -> latent {latent}, {ratio:.3g} times fewer numbers")
    kept = f"of it {binary_size(cost.state)} for weights, averages and moments"
    say(f"a step: {cost.in_words()}, {kept} (counted in {recipe.precision})")
    say(f"weights: {_first_weights(recipe, checkpoint)}")
    device = choose_device()
    say(f"device: {device.in_words()}, {recipe.precision}")
    memory = total_memory(torch.device(device.device))
    if memory is not None and not fits(cost, memory):
        size = (look.first.shape[2], look.first.shape[3])
        say(f"TOO LARGE for the {binary_size(memory)} of this device: {remedy(recipe, size, 1, memory)}")
    passes = recipe.steps * recipe.data.batch / index.samples
    epochs = f"{passes:,.0f} epochs" if passes >= 10 else f"{passes:.2g} epochs"
    say(f"training: {_size(index)}, {epochs} in {counted(recipe.steps, 'step')} of {recipe.data.batch}")
    say(look.in_words() + (f"; {look.usable:.1%} can be used" if measure else ""))
    _say_validation(recipe)
    _say_time(recipe, checkpoint, look, cost, measure)
    check_installed(recipe)


def _check_batch(recipe: Recipe, index: Index) -> None:
    """Raises UserError for a batch that does not divide, and for shards without pictures; warns of unused labels."""
    data = recipe.data.model_copy(update={"workers": 0})
    accumulation = recipe.optimizer.accumulation
    train_batches(data, index, recipe.seed, start_step=0, rank=0, world=1, accumulation=accumulation).close()


def _show(recipe: Recipe, changed: Mapping[str, Any] | None) -> None:
    """Prints the resolved recipe as YAML, or the fields of it that are named."""
    values = recipe.model_dump(mode="json")
    if changed is not None:
        base = {"base": changed["base"]} if "base" in changed else {}
        values = {**base, **_picked(values, changed)}
    console = Console(soft_wrap=True)
    for line in as_yaml(values, short=True).splitlines():
        console.print(Syntax(printable(line), "yaml", background_color="default"), end="")


def _picked(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names are given, in their own order: as the recipe has read them, without passwords."""
    picked = {}
    for name, value in values.items():
        if name in names:
            deeper = isinstance(value, Mapping) and isinstance(names[name], Mapping)
            picked[name] = _picked(value, names[name]) if deeper else value
    return picked


def _first_weights(recipe: Recipe, checkpoint: Checkpoint | None) -> str:
    """Where the weights come from that a run starts with."""
    model = recipe.model
    if checkpoint is not None:
        return f"those of {recipe.output} at step {checkpoint.step:,}, which it continues"
    if model.init_from is not None:
        kept = "" if model.train == "all" else f"; {model.train} alone is trained"
        return f"those of {model.init_from}{kept}"
    if model.initialisation == "average":
        return f"new, a codec that averages {model.factor} x {model.factor} pixels"
    return "new, random"


def _say_validation(recipe: Recipe) -> None:
    """Reads the first image of the validation data. Raises UserError where there is none that can be used."""
    if recipe.data.validation is None:
        say("validation: none")
        return
    held_out = load_index(recipe.data.validation)
    data = validation_data(recipe.validation, recipe.data, held_out).model_copy(update={"workers": 0})
    first = next(iter(validation_batches(data, held_out, batch=1, rank=0, world=1)), None)
    if first is None:
        raise UserError(f"no image of {recipe.data.validation} can be used", "check the shards and validation.crop")
    say(f"validation: {_size(held_out)}, the first of {tuple(first.image.shape[2:])} pixels")


def _say_time(recipe: Recipe, checkpoint: Checkpoint | None, look: Look, cost: Cost, measure: bool) -> None:
    """How long the steps that are left take: as measured, else, where no CPU could take them in a month, at least."""
    steps = recipe.steps - (0 if checkpoint is None else checkpoint.step)
    images, device = steps * recipe.data.batch, local_device()
    if measure:
        each, together = seconds_per_image(recipe, checkpoint, look.first, cost)
        say(f"measured: {duration(each)} an image, of {counted(together, 'image')} at once")
        seconds = each * images
        say(f"about {duration(seconds)} on this device, {device}: {counted(images, 'image')}, without validation")
    else:
        seconds = cost.flops * images / (usable_cores() * CORE) if device == "cpu" else 0.0
    if seconds > LONG:
        least = "" if measure else f": at least {duration(seconds)}, were its cores as fast as any"
        say(f"TOO LONG for this device{least}. Take a GPU, or a smaller recipe such as configs/try_f8.yaml")


def _parameters(module: nn.Module) -> str:
    """The number of parameters, such as "83,653,863 parameters", and of the trained ones where not all are."""
    total = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return f"{total:,} parameters" + ("" if trained == total else f", {trained:,} of them trained")


def _size(index: Index) -> str:
    return f"{counted(index.samples, 'image')} in {counted(len(index.shards), 'shard')}"
