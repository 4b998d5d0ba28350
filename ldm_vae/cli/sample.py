"""`ldm-vae sample`: draws new pictures from a model of the family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.atomic import atomic_folder, require_writable_folder
from ldm_vae.devices import local_device
from ldm_vae.printable import counted, say
from ldm_vae.progress import ProgressMeter


def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run of a recipe of configs/family/, or a checkpoint.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="New folder for the pictures.")],
    count: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="Factor on the standard deviation of the prior; below 1: more usual pictures.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws; the first ones don't depend on COUNT.")] = 0,
) -> None:
    """Draw new pictures from a model of the textbook family.

    Draws from its prior, and writes the mean of each picture's distribution as png, or npy where png cannot hold the
    channels. A codec is refused: its latents follow no prior.
    """
    from ldm_vae.data.images.decode import encode_image
    from ldm_vae.family.model import AT_ONCE, load

    require_writable_folder(images, ())
    drawn = load(model, device=local_device())
    extension = "png" if drawn.network.config.out_channels in (1, 3, 4) else "npy"
    with ProgressMeter("picture") as progress, atomic_folder(images) as stage:
        for first in range(0, count, AT_ONCE):
            part = drawn.sample(min(AT_ONCE, count - first), temperature=temperature, seed=seed, first=first)
            for number, picture in enumerate(part.cpu().numpy(), first):
                (stage / f"{number:06d}.{extension}").write_bytes(encode_image(picture, extension))
                progress.advance(1, count)
    say(f"{images}: {counted(count, 'picture')}")
