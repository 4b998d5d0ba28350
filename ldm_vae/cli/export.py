"""`ldm-vae export`: writes a codec as a folder that diffusers loads, or `LatentCodec` alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ldm_vae.atomic import require_writable_folder
from ldm_vae.choices import ScaleKind, Target
from ldm_vae.cli.options import BatchSize, Crop, Model, Resize, command_line, image_config
from ldm_vae.devices import local_device
from ldm_vae.errors import UserError
from ldm_vae.printable import say
from ldm_vae.progress import ProgressMeter
from ldm_vae.ranks import rank_and_world

if TYPE_CHECKING:
    from ldm_vae.metrics.latent import LatentStatistics


def export(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it replaces an earlier export.")],
    stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Statistics that `ldm-vae stats` wrote, instead of those in the run."),
    ] = None,
    shards: Annotated[str | None, typer.Option(metavar="SHARDS", help="Measure the statistics now, on SHARDS.")] = None,
    resize: Resize = None,
    crop: Crop = None,
    batch: BatchSize = 8,
    scale: Annotated[
        ScaleKind | None,
        typer.Option(help="factor: unit variance (SD, DiT). shift: also zero mean (SD3, FLUX). channel: each (SDXL)."),
    ] = None,
    target: Annotated[Target | None, typer.Option(help="Pipeline of diffusers that the codec must fit.")] = None,
    licence: Annotated[str | None, typer.Option(metavar="SPDX", help="Licence of the weights, for the card.")] = None,
    variant: Annotated[
        Literal["fp16"] | None,
        typer.Option(help="Round the weights to float16, in the file that diffusers names so."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="NAME/MODEL", help="Also upload it to the Hugging Face Hub, with its card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only the owners see a new model there.")] = False,
) -> None:
    """Write a codec as a folder that diffusers loads.

    A codec that diffusers has no class for becomes a folder of our own, which LatentCodec loads.

    Measured statistics give the scale of latents: those that `ldm-vae stats --write` left in a run, or those given
    here. Without statistics a diffusers model keeps its scale. The token for the Hub is HF_TOKEN, or that of
    `hf auth login`.
    """
    from ldm_vae.interop import hub
    from ldm_vae.interop.diffusers import EXPORTED
    from ldm_vae.interop.export import export_model
    from ldm_vae.interop.layouts.layout import loader_of
    from ldm_vae.interop.load import load_model, statistics_of, weights_hash
    from ldm_vae.interop.pipelines import natural_scale
    from ldm_vae.metrics.latent import LatentStatistics
    from ldm_vae.networks.network import refuse_no_codec

    if stats is not None and shards is not None:
        raise UserError("--stats and --shards", "give one of them: numbers from a file, or a measurement now")
    require_writable_folder(out, EXPORTED)
    loaded = load_model(model)
    refuse_no_codec(loaded.model, loaded.source.name)
    if shards is not None:
        statistics: LatentStatistics | None = _measure(model, shards, resize, crop, batch)
    elif stats is not None:
        statistics = LatentStatistics.read(stats)
    else:
        statistics = statistics_of(loaded.source, weights_hash(loaded.model))
    if rank_and_world()[0] != 0:
        return
    if scale is None and (stats is not None or shards is not None):
        scale = natural_scale(target)
    notes = export_model(
        loaded,
        out,
        statistics,
        kind=scale,
        target=target,
        licence=licence,
        variant=variant,
        command=command_line(context),
        hub_id=push,
    )
    for note in notes:
        say(f"ldm-vae: note: {note}", error=True)
    say(f"{out}: {'.'.join(loader_of(loaded.model))}({str(out)!r})")
    if push is not None:
        say(f"{push}: {hub.push(out, push, private=private or None)}")


def _measure(model: str, shards: str, resize: str | None, crop: str | None, batch: int) -> LatentStatistics:
    from ldm_vae.codec import LatentCodec
    from ldm_vae.latents.measure import measure_statistics

    codec = LatentCodec.load(model, device=local_device())
    image = image_config(codec.model.config.in_channels, resize, crop)
    with ProgressMeter("image") as progress:
        return measure_statistics(codec, shards, image, batch=batch, done=progress.advance)
