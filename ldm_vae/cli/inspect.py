"""`ldm-vae inspect`: finds what is wrong with a codec and its latent space, before anybody trains on it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from ldm_vae.cli.options import BatchSize, Crop, Model, Resize, Shards, image_config
from ldm_vae.devices import local_device
from ldm_vae.diagnostics.findings import IMAGES_INSPECTED, INSPECTION_FOLDER
from ldm_vae.errors import UserError
from ldm_vae.extras import require
from ldm_vae.printable import say
from ldm_vae.progress import ProgressMeter
from ldm_vae.ranks import rank_and_world


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
    """Find out whether reconstruction is any good, what is wrong with a latent space, and what to try.

    Compares the codec with averaging, PCA and published codecs of its rate. Then measures rate, active channels,
    spectrum, blur, equivariance, smoothness, robustness, range of float16 and anomaly scores, and writes pictures. Uses
    the posterior's mode at the size of each image; costly measurements use the middle of a few images.
    """
    if rank_and_world()[1] != 1:
        raise UserError(
            "ldm-vae inspect runs on one process", "start it without a launcher: a few hundred images are enough"
        )
    require("metrics", "inspect")
    from ldm_vae.cli.inspection_table import print_inspection
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
    with _Progress() as progress:
        inspection = inspect_codec(codec, job, output, model=describe_codec(codec), done=progress.advance)
    print_inspection(inspection)
    say(str(output))


class _Progress:
    """A bar for each part of the work, one after the other."""

    def __init__(self) -> None:
        self._part, self._meter = "", ProgressMeter("image")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._meter.__exit__(kind, error, at)

    def advance(self, part: str, count: int, total: int) -> None:
        if part != self._part:
            self._meter.__exit__(None, None, None)
            self._part, self._meter = part, ProgressMeter("image", part)
        self._meter.advance(count, total)
