"""ldm-vae evaluate: a codec and shards -> the table of metrics and its protocol."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ldm_vae.atomic import atomic_file
from ldm_vae.codec import LatentCodec
from ldm_vae.errors import UserError
from ldm_vae.evaluate import EvaluationProtocol, Results, evaluate_shards

UNITS = {"psnr": "dB", "psnr_pooled": "dB"}


def evaluate(
    model: Annotated[str, typer.Argument(help="Run, checkpoint or diffusers folder.")],
    shards: Annotated[str, typer.Argument(help="Image shards: folder, glob, brace pattern or URL.")],
    resize: Annotated[str | None, typer.Option(help="short:N makes the short side N pixels, bicubic.")] = None,
    crop: Annotated[str | None, typer.Option(help="center:N cuts a square of N pixels from the middle.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once, where they are equal in size.")] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the numbers and the protocol.")] = None,
) -> None:
    """Measure how well a codec reconstructs the images of some shards.

    Default protocol: images at their own size, mode of the posterior, 8-bit rounding, means over images.
    """
    protocol = EvaluationProtocol(resize=_pixels("resize", "short", resize), crop=_pixels("crop", "center", crop))
    codec = LatentCodec.load(model)
    results = evaluate_shards(codec, shards, protocol, channels=codec.model.config.in_channels, batch=batch)
    results = replace(results, protocol=describe_codec(codec) | results.protocol)
    if json_file is not None:
        with atomic_file(json_file) as stage:
            stage.write_text(json.dumps(results.to_json(), indent=2) + "\n")
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


def _pixels(option: str, keyword: str, text: str | None) -> int | None:
    """`short:256` -> 256."""
    if text is None:
        return None
    word, _, number = text.partition(":")
    if word != keyword or not number.isdecimal() or int(number) == 0:
        raise UserError(f"--{option} {text}", f"write it as {keyword}:256")
    return int(number)


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
        protocol.add_row(name, json.dumps(fact) if isinstance(fact, dict) else str(fact))
    console.print(protocol)
