"""`ldm-vae decode`: turns latent shards back into pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.cli.options import Model
from ldm_vae.devices import local_device
from ldm_vae.errors import UserError
from ldm_vae.printable import counted, say
from ldm_vae.progress import ProgressMeter


def decode(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="LATENTS", help="Folder that `ldm-vae encode` wrote.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder for the pictures.")],
    count: Annotated[int | None, typer.Option(min=1, help="Decode only the first COUNT latents.")] = None,
) -> None:
    """Turn latent shards back into images.

    Decodes the mean, or what was stored instead, and crops it to the size of the original. Writes png, or npy where png
    cannot hold the channels. Refuses latents of another codec. Never replaces a picture: a second run goes on.
    A picture is called as its key; where two shards have a key, those of each shard get a folder.
    """
    from ldm_vae.bottlenecks.scale import LatentScale
    from ldm_vae.codec import LatentCodec
    from ldm_vae.latents.dataset import LatentDataset
    from ldm_vae.latents.decode import decoded
    from ldm_vae.latents.picture_files import write_pictures
    from ldm_vae.latents.picture_names import PictureNames

    codec = LatentCodec.load(model, device=local_device())
    latents = LatentDataset(out, codec=codec, scale=LatentScale(), fields=())  # raw latents are decoded
    extension = "png" if codec.model.config.out_channels in (1, 3, 4) else "npy"
    total = min(len(latents), count or len(latents))
    names = PictureNames(latents, extension)
    broken: list[str] = []
    too_long: list[str] = []

    def short() -> Iterator[int]:
        for item in range(total):
            if names.path(item) is None:
                too_long.append(latents.key(item))
            else:
                yield item

    pictures = decoded(codec, latents, short())
    with ProgressMeter("image") as progress, closing(write_pictures(pictures, names, images, extension)) as done:
        for item, written in done:
            if not written:
                broken.append(latents.key(item))
            progress.advance(1, total)
    left_out = [
        f"{len(keys):,} of {counted(total, 'latent')}, such as {keys[0]}, {reason}"
        for keys, reason in (
            (broken, "gave values that are not finite"),
            (too_long, "left out, as keys too long for names of files"),
        )
        if keys
    ]
    if left_out:
        raise UserError("; ".join(left_out), f"the pictures of all others are in {images}")
    say(f"{images}: {counted(total, 'picture')}")
