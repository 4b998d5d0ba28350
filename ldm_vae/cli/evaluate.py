"""ldm-vae evaluate: a codec and shards -> the table of metrics and its protocol."""

from __future__ import annotations

import json as json_format
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from ldm_vae.atomic import atomic_file
from ldm_vae.cli.options import BatchSize, Crop, Json, Model, Progress, Resize, Shards, image_config
from ldm_vae.codec import LatentCodec
from ldm_vae.evaluate import EvaluationProtocol, Results, evaluate_shards
from ldm_vae.ranks import local_device, rank_and_world
from ldm_vae.scale import LatentScale

UNITS = {"psnr": "dB", "psnr_pooled": "dB"}


def evaluate(
    model: Model,
    shards: Shards,
    resize: Resize = None,
    crop: Crop = None,
    batch: BatchSize = 8,
    json: Json = None,
) -> None:
    """Measure how well a codec reconstructs the images of some shards.

    Of the posterior's mode, at the images' own size, on 8-bit values; means over images. `accelerate launch` and
    torchrun share the images out to processes.
    """
    codec = LatentCodec.load(model, device=local_device())
    codec.scale = codec.scale or LatentScale()  # none is needed to reconstruct
    protocol = EvaluationProtocol(image=image_config(codec.model.config.in_channels, resize, crop))
    with Progress("image") as progress:
        results = evaluate_shards(codec, shards, protocol, batch=batch, done=progress.advance)
    results = replace(results, protocol=describe_codec(codec) | results.protocol)
    if rank_and_world()[0] != 0:
        return
    if json is not None:
        with atomic_file(json) as stage:
            stage.write_text(json_format.dumps(results.to_json(), indent=2) + "\n")
    _print(results)


def describe_codec(codec: LatentCodec) -> dict[str, str | int | None]:
    """What the protocol says of the codec."""
    return {
        "model": codec.source.name,
        "step": codec.source.step,
        "weights": codec.source.weights or "as exported",
        "weights_sha256": codec.weights_hash,
        "precision": str(codec.dtype).removeprefix("torch."),
    }


def _print(results: Results) -> None:
    console = Console()
    table = Table("metric", "value", "unit")
    for name, value in results.metrics.items():
        shown = f"missing: {results.missing[name]}" if value is None else f"{value:.4f}"
        table.add_row(name, shown, UNITS.get(name, ""))
    console.print(table)
    protocol = Table(show_header=False, title="protocol", title_justify="left")
    protocol.add_column()
    protocol.add_column(overflow="fold")
    for name, fact in results.protocol.items():
        protocol.add_row(name, json_format.dumps(fact) if isinstance(fact, dict) else str(fact))
    console.print(protocol)
