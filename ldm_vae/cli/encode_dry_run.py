"""`ldm-vae encode --dry-run`: says what encoding will give and how long it will take."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ldm_vae.cli.summary import DRY_RUN, per_image, say_reasons, say_room, say_row, speed
from ldm_vae.codec import LatentCodec
from ldm_vae.data.shards.index import Index
from ldm_vae.latents.format import LatentJob
from ldm_vae.latents.trial import Trial, latent_bytes, missing_shards, try_encoding
from ldm_vae.printable import counted, say
from ldm_vae.quantities import duration

SHAPES_SHOWN = 3  # of latents


def say_dry_run(codec: LatentCodec, index: Index, out: Path, job: LatentJob, *, workers: int, prune: bool) -> None:
    """Prints it.

    Raises UserError if the folder holds other latents, files of others, or latents of shards that are gone; and if the
    disk has too little room. Latents of other images are found only by encoding, which reads the images.
    """
    shards, there = missing_shards(index, out, job, prune=prune)
    say(DRY_RUN)
    size = sum(shard.size for shard in index.shards)
    found = f"{counted(index.samples, 'image')} in {counted(len(index.shards), 'shard')}"
    say_row("found", f"{found}, {per_image(size, index.samples)}")
    if there:
        what = "is there already" if there == 1 else "are there already"
        say_row("there", f"{there:,} of {counted(len(index.shards), 'tar')} {what}, if no image has changed")
    if not shards:
        say("nothing to do")
        return
    images = sum(shard.samples for shard in shards)
    trial = try_encoding(codec, shards, job, workers=workers)
    say_row("latents", f"{_stored(job)}: {_shapes(trial.shapes)}")
    say_row("left out", f"{len(trial.left_out):,} of {counted(trial.tried, 'image')} tried")
    say_reasons(trial.left_out)
    say_row("speed", f"{speed(trial.timed, trial.seconds)} on {codec.device.type}, {job.precision}")
    needed, source = _bytes(latent_bytes(shards, job), trial, images)
    say_row("to write", f"{counted(len(shards), 'tar')}, {per_image(needed, images)}{source}")
    say_row("time", f"about {duration(images / max(trial.timed, 1) * trial.seconds)} for {counted(images, 'image')}")
    say_room(out, needed)


def _bytes(counted_bytes: int | None, trial: Trial, images: int) -> tuple[float, str]:
    """Bytes of all tars, and how they are known where they were not counted."""
    if counted_bytes is not None:
        return counted_bytes, ""
    return trial.stored / trial.tried * images, f", by {counted(trial.tried, 'image')} tried"


def _stored(job: LatentJob) -> str:
    return f"{job.latents}{', mirrored ones too' if job.mirrored else ''}, float16"


def _shapes(shapes: Counter[tuple[int, ...]]) -> str:
    """Such as "(6, 64, 64)", or "(6, 64, 48) of 12 images, (6, 48, 64) of 7 images"."""
    if len(shapes) == 1:
        return str(next(iter(shapes)))
    shown = [f"{shape} of {counted(count, 'image')}" for shape, count in shapes.most_common(SHAPES_SHOWN)]
    more = [f"{counted(len(shapes) - SHAPES_SHOWN, 'more shape')}"] if len(shapes) > SHAPES_SHOWN else []
    return ", ".join([*shown, *more]) or "none"
