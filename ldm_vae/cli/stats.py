"""`ldm-vae stats`: measures mean and standard deviation of latents, which scale them for diffusion models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_vae.atomic import require_writable
from ldm_vae.cli.options import BatchSize, Crop, Json, Model, Resize, Shards, image_config
from ldm_vae.devices import local_device
from ldm_vae.errors import UserError
from ldm_vae.launch import refuse_one_for_several
from ldm_vae.printable import counted, say
from ldm_vae.progress import ProgressMeter
from ldm_vae.ranks import rank_and_world

if TYPE_CHECKING:
    from ldm_vae.metrics.latent import LatentStatistics


def stats(
    model: Model,
    shards: Shards,
    resize: Resize = None,
    crop: Crop = None,
    batch: BatchSize = 8,
    json: Json = None,
    write: Annotated[
        bool, typer.Option("--write", help="Store them beside the model; from then on they scale its latents.")
    ] = False,
) -> None:
    """Measure the mean and standard deviation of a codec's latents.

    Measures the posterior's mode over all images and positions, in float64. Also measures the largest activation, which
    shows whether float16 would overflow. Images keep their size; sides are padded to a multiple of f.
    """
    from ldm_vae.codec import LatentCodec
    from ldm_vae.interop.diffusers import STATISTICS
    from ldm_vae.interop.export import save_statistics
    from ldm_vae.latents.measure import measure_statistics

    refuse_one_for_several(rank_and_world()[1], local_device())
    codec = LatentCodec.load(model, device=local_device())
    if write and codec.source.folder is None:
        raise UserError(f"--write: {model} is no folder to store statistics in", "use --json FILE")
    if write and codec.source.folder is not None:
        path = codec.source.folder / STATISTICS
        require_writable(path)
        if path.exists():
            _refuse_other_file(path)
    image = image_config(codec.model.config.in_channels, resize, crop)
    with ProgressMeter("image") as progress:
        statistics = measure_statistics(codec, shards, image, batch=batch, done=progress.advance)
    if rank_and_world()[0] != 0:
        return
    print(_channel_table(statistics))
    if json is not None:
        statistics.write(json)
    if write:
        say(f"written to {save_statistics(codec.source, statistics)}")


def _refuse_other_file(path: Path) -> None:
    from ldm_vae.metrics.latent import LatentStatistics

    try:
        LatentStatistics.read(path)
    except UserError as error:
        raise UserError(f"{path} would be replaced, and is none of ldm_vae's", "move it, or use --json FILE") from error


def _channel_table(statistics: LatentStatistics) -> str:
    rows = [("all", statistics.mean, statistics.std)]
    channels = zip(statistics.channel_mean, statistics.channel_std, strict=True)
    rows += [(str(channel), mean, std) for channel, (mean, std) in enumerate(channels)]
    lines = [f"{'channel':>7}  {'mean':>10}  {'std':>10}"]
    lines += [f"{name:>7}  {mean:>10.5f}  {std:>10.5f}" for name, mean, std in rows]
    images = counted(statistics.images, "image")
    lines.append(f"{images}, {statistics.latents} of the posterior; scaling factor {1 / statistics.std:.5f}")
    if (activation := statistics.activation) is not None:
        images = counted(activation.images, "image")
        lines.append(f"largest activation {activation.largest:.1f} at {activation.layer}, over {images}")
    return "\n".join(lines)
