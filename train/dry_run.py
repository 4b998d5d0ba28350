"""A description of what a recipe would train: the resolved recipe, sizes, and a look at the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.syntax import Syntax
from torch import nn

from ldm_vae.data.shards.index import Index, Part, load_index
from ldm_vae.data.stream.reader import train_batches, validation_batches
from ldm_vae.data.stream.worker import Fault
from ldm_vae.errors import UserError
from ldm_vae.losses.perceptual import perceptual_channels
from ldm_vae.printable import printable
from ldm_vae.recipe import dump
from train.build import build_adversaries, build_autoencoder
from train.launch import check_launch
from train.recipe import Recipe, resolve_precision
from train.validate import validation_data

LOOKED_AT = 64  # images of the training data that are decoded


def describe_recipe(recipe: Recipe) -> None:
    """Prints the description to stdout. Reads images from all over the training data, and one of the validation data.

    Raises UserError for what training would refuse.
    """
    check_launch(recipe)
    autoencoder, recipe = build_autoencoder(resolve_precision(recipe))
    if recipe.loss.perceptual.weight > 0:
        perceptual_channels(recipe.loss.perceptual, recipe.model.out_channels)
    index = load_index(recipe.data.train)
    looked_at = _look_at_images(recipe, index)
    image = _first_image(recipe, index)
    console = Console(soft_wrap=True)
    console.print(Syntax(dump(recipe), "yaml", background_color="default"))
    console.print(f"autoencoder: {_parameters(autoencoder)}, f = {recipe.model.factor}")
    for adversary in build_adversaries(recipe):
        console.print(f"{adversary.name}: {_parameters(adversary.build(recipe.model))}")
    shape = autoencoder.latent_shape(image)
    ratio = image[0].numel() / math.prod(shape[1:])
    console.print(f"image {tuple(image.shape[1:])} -> latent {shape[1:]}, {ratio:.3g} times fewer numbers")
    console.print(f"training: {_size(index)}, {recipe.steps * recipe.data.batch / index.samples:.3g} epochs")
    console.print(printable(looked_at), markup=False)
    if recipe.data.validation is not None:
        held_out = load_index(recipe.data.validation)
        data = validation_data(recipe.validation, recipe.data, held_out)
        first = next(iter(validation_batches(data, held_out, batch=1, rank=0, world=1)), None)
        if first is None:
            raise UserError(f"no image of {recipe.data.validation} can be used", "check the shards and validation.crop")
        console.print(f"validation: {_size(held_out)}, the first of {tuple(first.image.shape[2:])} pixels")


def _look_at_images(recipe: Recipe, index: Index) -> str:
    """Decodes `LOOKED_AT` images of each source, at even distances, and says how many of all of them are broken.

    Raises UserError if a source has a larger share of broken ones than a run takes.
    """
    looked_at = 0
    broken: list[Fault] = []
    for part in index.parts:
        shards = index.shards[part.first : part.stop]
        source = Index(shards, (Part(0, len(shards), 1.0),))
        data = recipe.data.model_copy(update={"workers": 0, "broken_budget": source.samples})
        images = validation_batches(data, source, batch=1, rank=0, world=max(1, source.samples // LOOKED_AT))
        mine = sum(1 for _ in images) + len(images.faults)
        if len(images.faults) > max(1, recipe.data.broken_share * mine):
            remedy = "`ldm-vae check --decode` finds all; mend or remove them, or raise data.broken_share"
            raise UserError(_broken(images.faults, mine), remedy)
        looked_at, broken = looked_at + mine, broken + images.faults
    return _broken(broken, looked_at)


def _broken(faults: Sequence[Fault], looked_at: int) -> str:
    example = f", such as {faults[0].url} {faults[0].key} ({faults[0].reason})" if faults else ""
    return f"{len(faults)} of {looked_at} images looked at are broken{example}"


def _first_image(recipe: Recipe, index: Index) -> torch.Tensor:
    data = recipe.data.model_copy(update={"workers": 0})
    batches = train_batches(
        data, index, recipe.seed, start_step=0, rank=0, world=1, accumulation=recipe.optimizer.accumulation
    )
    return next(batches)[0].image[:1]


def _parameters(module: nn.Module) -> str:
    """The number of parameters, such as "83,653,863 parameters", and of the trained ones where not all are."""
    total = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return f"{total:,} parameters" + ("" if trained == total else f", {trained:,} of them trained")


def _size(index: Index) -> str:
    return f"{index.samples:,} images in {len(index.shards):,} shards"
