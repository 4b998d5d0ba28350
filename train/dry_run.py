"""What a recipe would do, without doing it: the resolved recipe, sizes, and a look at the data."""

from __future__ import annotations

from rich.console import Console
from rich.syntax import Syntax
from torch import nn

from ldm_vae.data.index import load_index
from ldm_vae.data.reader import train_batches, validation_batches
from ldm_vae.nn.discriminator import PatchDiscriminator
from ldm_vae.recipe import dump
from train.build import build_autoencoder
from train.recipe import Recipe


def parameter_count(module: nn.Module) -> str:
    """"83,653,863 parameters", and how many of them are trained where not all are."""
    total = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return f"{total:,} parameters" + ("" if trained == total else f", {trained:,} of them trained")
