"""`ldm-vae roundtrip`: measures what storing latents costs."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ldm_vae.atomic import atomic_file
from ldm_vae.cli.options import Json, Model, Shards
from ldm_vae.devices import local_device
from ldm_vae.extras import require
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.printable import counted, printable
from ldm_vae.progress import ProgressMeter

if TYPE_CHECKING:
    from ldm_vae.latents.roundtrip import Storage


def roundtrip(
    model: Model,
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="Folder that `ldm-vae encode` wrote.")],
    shards: Shards,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Measure so many latents, evenly spread over all; without it, all of them."),
    ] = None,
    json: Json = None,
) -> None:
    """Measure stored latents against the images they were made of.

    Decodes the latents as they are stored (float16), as the codec encodes them now (float32), and rounded to 8 bits.
    SHARDS are what was encoded: shards or a folder of images.
    """
    from ldm_vae.bottlenecks.scale import LatentScale
    from ldm_vae.codec import LatentCodec
    from ldm_vae.data.shards.index import load_index
    from ldm_vae.latents.dataset import LatentDataset
    from ldm_vae.latents.roundtrip import measure_roundtrip

    require("metrics", "roundtrip")
    codec = LatentCodec.load(model, device=local_device())
    dataset = LatentDataset(latents, codec=codec, scale=LatentScale(), fields=())  # raw latents are measured
    with ProgressMeter("image") as progress:
        storages = measure_roundtrip(codec, dataset, load_index(shards), limit=images, done=progress.advance)
    if json is not None:
        with atomic_file(json) as stage:
            stage.write_text(
                json_format.dumps({name: _storage_to_json(storage) for name, storage in storages.items()}, indent=1)
                + "\n"
            )
    _print(storages, len(dataset))


def _print(storages: Mapping[str, Storage], stored: int) -> None:
    """stored: number of latents in the folder."""
    first = next(iter(storages.values()))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in storages:
        table.add_column(name, justify="right")
    table.add_row("bytes per image", *(f"{storage.bytes:,.0f}" for storage in storages.values()))
    for metric in first.results.metrics:
        described = describe_metric(metric)
        values = [storage.results.metrics[metric] for storage in storages.values()]
        shown = ("missing" if value is None else f"{value:.4f}" for value in values)
        table.add_row(f"{described.title}{', ' * bool(described.unit)}{described.unit}", *shown)
    console = Console(markup=False, highlight=False)
    console.print(table)
    for metric, reason in first.results.missing.items():
        console.print(printable(f"{describe_metric(metric).title} is missing: {reason}"))
    measured = len(first.results.per_image)
    console.print(f"{counted(measured, 'latent')} of {stored:,} measured.")
    for name, storage in list(storages.items())[1:]:
        console.print(f"Beside {next(iter(storages))}, {name} {_cost(first, storage)}.")


def _cost(first: Storage, other: Storage) -> str:
    """What one way to store latents saves and loses against the first."""
    saved = f"takes {other.bytes / first.bytes:.0%} of the bytes"
    ours, theirs = (storage.results.metrics.get("psnr") for storage in (first, other))
    if ours is None or theirs is None:
        return saved
    return f"{saved} and {'costs' if theirs <= ours else 'gains'} {abs(ours - theirs):.4f} dB of PSNR"


def _storage_to_json(storage: Storage) -> dict[str, Any]:
    return {"bytes_per_image": storage.bytes, **storage.results.to_json()}
