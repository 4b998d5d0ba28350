"""`ldm-vae roundtrip`: measures what storing latents costs."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ldm_vae.atomic import atomic_file
from ldm_vae.cli.options import Json, Model, ProgressMeter, Shards
from ldm_vae.extras import require
from ldm_vae.printable import printable
from ldm_vae.ranks import local_device

if TYPE_CHECKING:
    from ldm_vae.latents.roundtrip import Storage


def roundtrip(
    model: Model,
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="Folder that `ldm-vae encode` wrote.")],
    shards: Shards,
    json: Json = None,
) -> None:
    """Measure stored latents against the images they were made of.

    Decodes the latents as they are stored (float16), as the codec encodes them now (float32), and rounded to 8 bits.
    """
    from ldm_vae.bottlenecks.scale import LatentScale
    from ldm_vae.codec import LatentCodec
    from ldm_vae.data.shards.index import load_index
    from ldm_vae.latents.dataset import LatentDataset
    from ldm_vae.latents.roundtrip import measure_roundtrip

    require("metrics", "roundtrip")
    codec = LatentCodec.load(model, device=local_device())
    with ProgressMeter("image") as progress:
        dataset = LatentDataset(latents, codec=codec, scale=LatentScale(), fields=())  # raw latents are measured
        storages = measure_roundtrip(codec, dataset, load_index(shards), done=progress.advance)
    if json is not None:
        with atomic_file(json) as stage:
            stage.write_text(
                json_format.dumps({name: _storage_to_json(storage) for name, storage in storages.items()}, indent=1)
                + "\n"
            )
    table = Table("", *storages)
    first = next(iter(storages.values())).results
    table.add_row("bytes per image", *(f"{storage.bytes:,.0f}" for storage in storages.values()))
    for name in first.metrics:
        values = [storage.results.metrics[name] for storage in storages.values()]
        table.add_row(name, *("missing" if value is None else f"{value:.4f}" for value in values))
    console = Console(markup=False)
    console.print(table)
    for name, reason in first.missing.items():
        console.print(printable(f"{name} is missing: {reason}"))


def _storage_to_json(storage: Storage) -> dict[str, Any]:
    return {"bytes_per_image": storage.bytes, **storage.results.to_json()}
