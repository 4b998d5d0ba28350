"""A baseline's name on the command line -> a codec of the rate of the one it is held against."""

from __future__ import annotations

from typing import get_args

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import SourceConfig, load_index
from ldm_vae.data.stream.reader import DataConfig, validation_batches
from ldm_vae.errors import UserError
from ldm_vae.evaluation.lossy import Format, LossyCodec
from ldm_vae.evaluation.pca import PatchPCA, fit_pca
from ldm_vae.interop.load import ModelSource
from ldm_vae.recipe import validate

FIT_IMAGES = 1000  # images that PCA is fitted on, at least, where there are as many: millions of patches
Baseline = PatchPCA | LossyCodec


def choose_baseline(wanted: str, codec: LatentCodec, image: ImageConfig) -> Baseline:
    """wanted: jpeg, webp, pca (fitted on the shards that the codec's run was trained on) or pca=SHARDS.
    image: how the images are prepared on which codecs are compared.

    Raises UserError for another name, and where PCA has nothing to be fitted on.
    """
    name, _, shards = wanted.partition("=")
    for kind in get_args(Format):
        if wanted == kind:
            return LossyCodec(
                kind,
                factor=codec.factor,
                numbers=codec.latent_channels,
                channels=codec.model.config.in_channels,
                device=codec.device,
            )
    if name != "pca":
        raise UserError(f"baseline {wanted!r}", "choose among pca, pca=SHARDS, jpeg and webp")
    sources = (SourceConfig(shards=shards),) if shards else _trained_on(codec.source)
    return _fit(sources, codec, image).to(codec.device)


def _trained_on(source: ModelSource) -> tuple[SourceConfig, ...]:
    sources = source.training_sources
    if not sources:
        raise UserError(f"no recipe tells what {source.name} was trained on", "name shards: --baseline pca=SHARDS")
    return tuple(validate(SourceConfig, found, f"data.train of {source.name}") for found in sources)


def _fit(sources: tuple[SourceConfig, ...], codec: LatentCodec, image: ImageConfig) -> PatchPCA:
    """On images evenly taken from the shards, prepared as those of the comparison."""
    try:
        index = load_index(sources)
    except UserError as error:
        remedy = f"{error.remedy}; or name other shards: --baseline pca=SHARDS"
        raise UserError(f"PCA has nothing to be fitted on ({error.what})", remedy) from error
    config = DataConfig(train=sources, batch=1, workers=0, image=image, broken_budget=index.samples)
    every = max(1, index.samples // FIT_IMAGES)
    taken = validation_batches(config, index, batch=1, rank=0, world=every)
    return fit_pca((batch.image for batch in taken), codec.factor, codec.latent_channels)
