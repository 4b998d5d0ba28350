"""`ldm-vae encode`: turns image shards into latent shards."""

from __future__ import annotations

import json as json_format
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_vae.atomic import atomic_file, require_writable
from ldm_vae.choices import LatentKind
from ldm_vae.cli.options import BatchSize, Crop, Json, Model, Precision, Resize, Shards, image_config
from ldm_vae.cli.summary import per_image, say_reasons, speed
from ldm_vae.devices import local_device
from ldm_vae.errors import UserError
from ldm_vae.launch import refuse_one_for_several
from ldm_vae.printable import counted, say
from ldm_vae.progress import ProgressMeter
from ldm_vae.ranks import is_first_to_report, rank_and_world
from ldm_vae.waiting import cores_of_process

if TYPE_CHECKING:
    from ldm_vae.latents.encode import Share
    from ldm_vae.latents.format import LatentsFile

Quarantined = dict[str, dict[str, str]]  # name of a tar -> key of an image that it lacks -> why


def encode(
    model: Model,
    shards: Shards,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the latent shards and latents.json.")],
    latents: Annotated[
        LatentKind, typer.Option(help="What to store: mean and log-variance, the mean, or a sample.")
    ] = "moments",
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Store the latent of the mirrored image, too.")] = False,
    resize: Resize = None,
    crop: Crop = None,
    multiple: Annotated[
        int | None, typer.Option(min=1, help="Pad to a multiple of so many pixels; default: f.")
    ] = None,
    batch: BatchSize = 8,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads in each process that decode pictures; default: by its cores.")
    ] = None,
    precision: Precision = "float32",
    keep_image: Annotated[bool, typer.Option("--keep-image", help="Store the images beside their latents.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed for --latents sample.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is finished, and its images, to find what has changed.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove latents whose shards of images are gone.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say how many bytes it would write, and in what time."),
    ] = False,
    json: Json = None,
) -> None:
    """Turn image shards into latent shards.

    Writes one latent tar for each image tar, with the same name and with all fields except the image; latents.json
    describes them. Latents are stored as float16, whatever the network computes in. A second run encodes what is
    missing, and what was made from images that have changed. Under `accelerate launch` or torchrun the processes share
    the shards. A CPU encodes a batch in each of its threads (OMP_NUM_THREADS).
    """
    from ldm_vae.codec import LatentCodec
    from ldm_vae.data.shards.index import load_index
    from ldm_vae.latents.encode import encode_shards
    from ldm_vae.latents.format import LATENTS_FILE
    from ldm_vae.latents.job import latent_job

    rank, world = rank_and_world()
    refuse_one_for_several(world, local_device())
    if dry_run and world > 1:
        raise UserError("--dry-run in several processes", "run it in one: they share the time that it tells")
    require_writable(out / LATENTS_FILE)
    workers = workers or cores_of_process()
    codec = LatentCodec.load(model, device=local_device(), dtype=precision)
    image = image_config(codec.model.config.in_channels, resize, crop)
    job = latent_job(
        codec,
        shards,
        latents=latents,
        mirrored=mirrored,
        resize=image.resize,
        resize_filter=image.resize_filter,
        crop=image.crop,
        multiple=multiple,
        batch=batch,
        keep_image=keep_image,
        seed=seed,
    )
    index = load_index(shards)
    if dry_run:
        from ldm_vae.cli.encode_dry_run import say_dry_run

        say_dry_run(codec, index, out, job, workers=workers, prune=prune)
        return
    started = time.monotonic()
    with ProgressMeter("image") as progress:
        share = encode_shards(
            codec, index, out, job, workers=workers, rank=rank, world=world, verify=verify, prune=prune,
            done=progress.advance,
        )  # fmt: skip
    _tell(out, share, time.monotonic() - started, json, measure=f"ldm-vae stats {model} {shards} --write")


def _tell(out: Path, share: Share, seconds: float, json: Path | None, *, measure: str) -> None:
    """Says what this process did, and what the folder holds where it is finished and no other process says so.

    json: the file for the numbers of a finished folder.
    measure: the command that gives the codec a scale.
    """
    from ldm_vae.latents.folder import read_latents_file

    content = read_latents_file(out)
    left_out = _left_out(out, content) if content.complete else {}
    if content.complete and json is not None:
        _write_json(json, content, left_out)
    totals = content.complete and is_first_to_report(f"encoded {out}")  # two may find the last tar finished
    if totals:
        _say_totals(out, content, left_out)
    rank, world = rank_and_world()
    _say_share(share, seconds, f"process {rank} of {world}: " if world > 1 else "")
    if totals and content.scale is None:
        say(f"not scaled, since nobody has measured the codec: `{measure}`")


def _left_out(out: Path, content: LatentsFile) -> Quarantined:
    """What the tars of a finished folder lack. Where they lack nothing, no record is read."""
    from ldm_vae.latents.folder import read_records

    if not any(shard.left_out for shard in content.shards.values()):
        return {}
    return {name: dict(record.quarantined) for name, record in read_records(out).items() if record.quarantined}


def _write_json(file: Path, content: LatentsFile, left_out: Quarantined) -> None:
    """Writes the numbers of a finished folder."""
    summary = content.model_dump(mode="json", include={"samples", "scale", "statistics"})
    summary["shards"] = {name: shard.samples for name, shard in content.shards.items()}
    summary["quarantined"] = left_out
    with atomic_file(file) as stage:
        stage.write_text(json_format.dumps(summary, indent=1) + "\n")


def _say_totals(out: Path, content: LatentsFile, left_out: Quarantined) -> None:
    """What a finished folder holds, whoever made it, and what it lacks."""
    from ldm_vae.latents.format import RECORDS_FOLDER

    sizes = sum((out / name).stat().st_size for name in content.shards)
    tars = counted(len(content.shards), "tar")
    say(f"{out}: {counted(content.samples, 'latent')} in {tars}, {per_image(sizes, content.samples)}")
    if lost := sum(shard.left_out for shard in content.shards.values()):
        images = counted(content.samples + lost, "image")
        say(f'left out {lost:,} of {images}, all named in {out / RECORDS_FOLDER} ("quarantined"):')
        say_reasons(reason for of_tar in left_out.values() for reason in of_tar.items())


def _say_share(share: Share, seconds: float, who: str) -> None:
    """What this process did."""
    there = f"{share.there:,} of {counted(share.there + share.tars, 'tar')}"
    if not share.tars:
        say(f"{who}nothing to do: {counted(share.there, 'tar')} {'was' if share.there == 1 else 'were'} there already")
        return
    if share.there:
        say(f"{who}{there} {'was' if share.there == 1 else 'were'} there already")
    say(f"{who}encoded {speed(share.images, seconds)}")
    latents = share.images - len(share.left_out)
    say(f"{who}read {per_image(share.read, share.images)}, wrote {per_image(share.written, latents)}")
