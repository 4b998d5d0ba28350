"""Encodes shards in this process, by a job as `ldm-vae encode` makes it."""

from __future__ import annotations

from pathlib import Path

from ldm_vae import LatentCodec
from ldm_vae.data.shards.index import load_index
from ldm_vae.latents import encode
from ldm_vae.latents.format import LatentJob
from ldm_vae.latents.job import latent_job


def job(codec: LatentCodec, *, batch: int, resize: int | None = None, multiple: int | None = None) -> LatentJob:
    return latent_job(
        codec,
        "shards",
        latents="moments",
        mirrored=False,
        resize=resize,
        resize_filter="bicubic",
        crop=None,
        multiple=multiple,
        batch=batch,
        keep_image=False,
        seed=0,
    )


def run(codec: LatentCodec, shards: Path, out: Path, work: LatentJob, workers: int = 2) -> None:
    index = load_index(str(shards))
    encode.encode_shards(codec, index, out, work, workers=workers, rank=0, world=1, done=lambda count, total: None)
