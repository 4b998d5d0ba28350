"""`ldm-vae inspect`: finds what is wrong with a latent space, before anybody trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm_vae.cli.options import BatchSize, Crop, Model, ProgressMeter, Resize, Shards, image_config
from ldm_vae.diagnostics.findings import IMAGES_INSPECTED, INSPECTION_FOLDER
from ldm_vae.errors import UserError
from ldm_vae.extras import require
from ldm_vae.printable import printable, say
from ldm_vae.ranks import local_device, rank_and_world

if TYPE_CHECKING:
    from ldm_vae.diagnostics.findings import Inspection

LEVEL_COLOURS = {"bad": "red", "warning": "yellow", "unknown": "cyan", "good": "green"}  # the worst first


def inspect(
    model: Model,
    shards: Shards,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to write; default for a run: RUN/inspection. Replaces an older inspection."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="How many images to inspect; the seed chooses them at random.")
    ] = IMAGES_INSPECTED,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SHARDS", help="A second set of images; the anomaly scores should tell it from the first."
        ),
    ] = None,
    resize: Resize = None,
    crop: Crop = None,
    batch: BatchSize = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
) -> None:
    """Find out what is wrong with a latent space, and what to try.

    Measures rate, active channels, spectrum, blur, equivariance, smoothness, robustness, range of float16 and anomaly
    scores, and writes pictures. Uses the posterior's mode at the size of each image; costly measurements use the middle
    of a few images.
    """
    if rank_and_world()[1] != 1:
        raise UserError(
            "ldm-vae inspect runs on one process", "start it without a launcher: a few hundred images are enough"
        )
    require("metrics", "inspect")
    from ldm_vae.codec import LatentCodec
    from ldm_vae.diagnostics.inspect import InspectionJob, inspect_codec
    from ldm_vae.evaluation.evaluate import describe_codec

    codec = LatentCodec.load(model, device=local_device())
    if output is None:
        if codec.source.kind != "run" or codec.source.folder is None:
            raise UserError(f"{model} is no run to write into", "name a folder with --output")
        output = codec.source.folder / INSPECTION_FOLDER
    image = image_config(codec.model.config.in_channels, resize, crop)
    job = InspectionJob(shards, image, images, against, batch, seed)
    with ProgressMeter("image") as progress:
        inspection = inspect_codec(codec, job, output, model=describe_codec(codec), done=progress.advance)
    _print(inspection, output)


def _print(inspection: Inspection, folder: Path) -> None:
    console = Console(markup=False)  # keys and globs may hold square brackets
    verdicts = Table("", "verdict", "why, and what to try", show_lines=True)
    for level, colour in LEVEL_COLOURS.items():
        for verdict in inspection.verdicts:
            if verdict.level == level:
                text = printable(verdict.statement) + (f"\n→ {printable(verdict.advice)}" if verdict.advice else "")
                verdicts.add_row(Text(level, style=colour), verdict.name.replace("_", " "), text)
    console.print(verdicts)
    numbers = Table("", "number", "value", "unit")
    for section in inspection.sections:
        for i, number in enumerate(section.numbers):
            shown = printable(f"missing: {number.missing}") if number.value is None else f"{number.value:.4g}"
            numbers.add_row("" if i else section.title, number.title, shown, number.unit)
    console.print(numbers)
    protocol = Table(show_header=False, title="protocol", title_justify="left")
    for name, value in inspection.protocol.items():
        protocol.add_row(name, printable(_words(value)))
    console.print(protocol)
    say(str(folder))


def _words(value: Any) -> str:
    """A value of the protocol in words; the scale is a dictionary."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items() if part is not None) or "none"
    return "none" if value is None else str(value)
