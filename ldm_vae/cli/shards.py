"""`ldm-vae shards`: packs a folder of images into shards with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.printable import say


def shards(
    folder: Annotated[Path, typer.Argument(help="Folder of images; its subfolders are searched, too.")],
    out: Annotated[
        Path, typer.Argument(help="Folder to make, with shards and index.json: the SHARDS of other commands.")
    ],
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Images in a tar; the last one has the rest.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the order of the images in the shards.")] = 0,
    classes: Annotated[
        bool | None,
        typer.Option(
            "--classes/--no-classes",
            help="Label each image with its subfolder. Default: if all images lie in subfolders, there are several, "
            "and they do not just count images.",
        ),
    ] = None,
) -> None:
    """Pack a folder of images into WebDataset shards with an index.

    Files beside an image that have its name and end in txt, json or cls are packed with it.
    """
    from ldm_vae.data.shards.pack import pack_folder

    packed = pack_folder(folder, out, samples_per_shard=samples_per_shard, seed=seed, classes=classes)
    found = packed.found
    labels = f" of {len(packed.classes)} classes (such as {packed.classes[0]})" if packed.classes else ""
    say(f"{packed.samples} images{labels} in {packed.shards} shards: {out}")
    if packed.numbered is not None:
        say(f"no classes: folders such as {packed.numbered} count images; --classes labels images with them")
    if found.renamed:
        dots = f"{len(found.renamed)} names had dots inside, such as {found.renamed[0]}"
        say(f"{dots}, which are now _: webdataset would cut the key there")
    if found.parts:
        say(f"{len(found.parts)} files such as {found.parts[0]} are packed with the image beside, as no image")
    if found.left_out:
        say(f"left out: {found.left_out}")
