"""`ldm-vae inspect`: what is wrong with a latent space, before anybody trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm_vae.cli.options import BatchSize, Crop, Model, Progress, Resize, Shards, image_config
from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import FOLDER, Inspection
from ldm_vae.diagnostics.inspect import IMAGES, InspectionJob, inspect_shards
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import describe_codec
from ldm_vae.ranks import local_device, rank_and_world

LEVELS = {"bad": "red", "warning": "yellow", "unknown": "cyan", "good": "green"}  # the worst first


def inspect(
    model: Model,
    shards: Shards,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to write; RUN/inspection for a run. An older inspection is replaced."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many to look at, chosen at random by the seed.")] = IMAGES,
    against: Annotated[
        str | None, typer.Option(metavar="SHARDS", help="A second set, which the anomaly scores are to tell apart.")
    ] = None,
    resize: Resize = None,
    crop: Crop = None,
    batch: BatchSize = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
) -> None:
    """Find out what is wrong with a latent space, and what to try.

    Rate, active channels, spectrum, blur, equivariance, smoothness, robustness, float16, pictures, anomaly scores. Of
    the posterior's mode, at the images' own size; costly parts look at the middle of a few of them.
    """
    if rank_and_world()[1] != 1:
        raise UserError(
            "ldm-vae inspect on several processes", "start it without a launcher: a few hundred images will do"
        )
    codec = LatentCodec.load(model, device=local_device())
    if output is None:
        if codec.source.kind != "run" or codec.source.folder is None:
            raise UserError(f"{model} is no run, in which to write", "name a folder by --output")
        output = codec.source.folder / FOLDER
    image = image_config(codec.model.config.in_channels, resize, crop)
    job = InspectionJob(shards, image, images, against, batch, seed)
    with Progress("image") as progress:
        inspection = inspect_shards(codec, job, output, model=describe_codec(codec), done=progress.advance)
    _print(inspection, output)


def _print(inspection: Inspection, folder: Path) -> None:
    console = Console(markup=False)  # keys and globs may hold square brackets
    verdicts = Table("", "verdict", "what it rests on, and what to try", show_lines=True)
    for level, colour in LEVELS.items():
        for verdict in inspection.verdicts:
            if verdict.level == level:
                said = verdict.statement + (f"\n→ {verdict.advice}" if verdict.advice else "")
                verdicts.add_row(Text(level, style=colour), verdict.name.replace("_", " "), said)
    console.print(verdicts)
    numbers = Table("", "number", "value", "unit")
    for section in inspection.sections:
        for i, number in enumerate(section.numbers):
            shown = f"missing: {number.missing}" if number.value is None else f"{number.value:.4g}"
            numbers.add_row("" if i else section.title, number.title, shown, number.unit)
    console.print(numbers)
    facts = Table(show_header=False, title="protocol", title_justify="left")
    for name, fact in inspection.protocol.items():
        facts.add_row(name, _words(fact))
    console.print(facts)
    print(folder)


def _words(fact: Any) -> str:
    """A value of the protocol as one reads it: the scale is a dictionary."""
    if isinstance(fact, dict):
        return ", ".join(f"{name} {value}" for name, value in fact.items() if value is not None) or "none"
    return "none" if fact is None else str(fact)
