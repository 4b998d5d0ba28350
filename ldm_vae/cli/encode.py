"""`ldm-vae encode`: turns image shards into latent shards."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.atomic import atomic_file
from ldm_vae.choices import LatentKind
from ldm_vae.cli.options import BatchSize, Crop, Json, Model, Precision, ProgressMeter, Resize, Shards, image_config
from ldm_vae.launch import refuse_one_for_several
from ldm_vae.printable import say
from ldm_vae.ranks import local_device, rank_and_world


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
    workers: Annotated[int, typer.Option(min=1, help="Threads in each process that decode pictures.")] = 4,
    precision: Precision = "float32",
    keep_image: Annotated[bool, typer.Option("--keep-image", help="Store the images beside their latents.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed for --latents sample.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is finished, and its images, to find what has changed.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove latents whose shards of images are gone.")] = False,
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
    from ldm_vae.latents.encode import encode_shards, latent_job
    from ldm_vae.latents.folder import read_latents_file, read_records
    from ldm_vae.latents.format import RECORDS_FOLDER

    refuse_one_for_several(rank_and_world()[1], local_device())
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
    rank, world = rank_and_world()
    index = load_index(shards)
    with ProgressMeter("image") as progress:
        encode_shards(
            codec, index, out, job, workers=workers, rank=rank, world=world, verify=verify, prune=prune,
            done=progress.advance,
        )  # fmt: skip
    content = read_latents_file(out)
    if not content.complete:
        say(f"{out}: the shards of process {rank} of {world} are finished")
        return
    if json is not None:
        records = read_records(out)
        summary = content.model_dump(mode="json", include={"samples", "scale", "statistics"})
        summary["shards"] = {name: shard.samples for name, shard in content.shards.items()}
        summary["quarantined"] = {n: dict(record.quarantined) for n, record in records.items() if record.quarantined}
        with atomic_file(json) as stage:
            stage.write_text(json_format.dumps(summary, indent=1) + "\n")
    left_out = sum(shard.left_out for shard in content.shards.values())
    which = f' (see "quarantined" in {out / RECORDS_FOLDER} for the reasons)' if left_out else ""
    if content.scale is None:
        say(f"{out}: not scaled, since nobody has measured the codec: `ldm-vae stats {model} {shards} --write`")
    say(f"{out}: {content.samples} latents in {len(content.shards)} shards, {left_out} images left out{which}")
