"""The job that the options of `ldm-vae encode` describe."""

from __future__ import annotations

from pathlib import Path

from ldm_vae.choices import LatentKind, ResizeFilter
from ldm_vae.codec import LatentCodec
from ldm_vae.data.shards.urls import is_remote
from ldm_vae.errors import UserError
from ldm_vae.latents.format import LatentJob
from ldm_vae.passwords import keep_aside


def latent_job(
    codec: LatentCodec,
    shards: str,
    *,
    latents: LatentKind,
    mirrored: bool,
    resize: int | None,
    resize_filter: ResizeFilter,
    crop: int | None,
    multiple: int | None,
    batch: int,
    keep_image: bool,
    seed: int,
) -> LatentJob:
    """The job that these options describe.

    shards: the shards of images, as a person gave them.
    Raises UserError if `multiple` is not a multiple of f, and for moments or samples that the codec does not have.
    """
    factor = codec.factor
    if multiple is not None and multiple % factor:
        raise UserError(f"--multiple {multiple}", f"give a multiple of f, which is {factor} for this codec")
    bottleneck, kind = codec.model.bottleneck, codec.model.config.bottleneck.kind
    for asked, there in (("moments", bottleneck.gaussian), ("sample", bottleneck.random)):
        if latents == asked and not there:
            raise UserError(f"a {kind} bottleneck has no {asked}", "store its latents with --latents mode")
    return LatentJob(
        source=keep_aside(shards) if is_remote(shards) else str(Path(shards).resolve()),
        codec=codec.weights_hash,
        encoder=codec.encoder_hash,
        factor=factor,
        channels=codec.latent_channels,
        logvar_range=bottleneck.logvar_range,
        latents=latents,
        mirrored=mirrored,
        image_channels=codec.model.config.in_channels,
        resize=resize,
        resize_filter=resize_filter,
        crop=crop,
        multiple=multiple or factor,
        precision=codec.precision,
        batch=batch,
        keep_image=keep_image,
        seed=seed,
    )
