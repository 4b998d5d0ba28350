"""ldm-vae shards: a folder of images -> shards with index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.data.shards.pack import pack_folder


def shards(
    folder: Annotated[Path, typer.Argument(help="Folder of images, searched with its subfolders.")],
    out: Annotated[Path, typer.Argument(help="Folder to make: the SHARDS of other commands, with index.json.")],
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Images per tar; the last has the rest.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the order of the images over the shards.")] = 0,
    classes: Annotated[
        bool | None,
        typer.Option(
            "--classes/--no-classes",
            help="Label each image with the subfolder it lies in. Default: if all lie in one, and there are several.",
        ),
    ] = None,
) -> None:
    """Pack a folder of images into WebDataset shards with an index.

    Files beside an image that share its name and end in txt, json or cls come along.
    """
    packed = pack_folder(folder, out, samples_per_shard=samples_per_shard, seed=seed, classes=classes)
    labels = f" of {len(packed.classes)} classes" if packed.classes else ""
    typer.echo(f"{packed.samples} images{labels} in {packed.shards} shards: {out}")
    if packed.renamed:
        typer.echo(f"{packed.renamed} names had dots inside, which are _ now: webdataset would cut the key there")
    if packed.ignored:
        kinds = ", ".join(f"{count} {name}" for name, count in packed.ignored.most_common())
        typer.echo(f"left out: {kinds}")
