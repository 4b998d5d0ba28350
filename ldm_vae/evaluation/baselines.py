"""Makes a baseline from its name on the command line: a codec of the same rate as the one it is compared with."""

from __future__ import annotations

from typing import get_args

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import SourceConfig, load_index
from ldm_vae.data.stream.reader import DataConfig, validation_batches
from ldm_vae.errors import UserError
from ldm_vae.evaluation.lossy import LossyCodec, LossyFormat
from ldm_vae.evaluation.pca import PatchPCA, fit_pca
from ldm_vae.interop.load import ModelSource
from ldm_vae.passwords import NEVER_STORED
from ldm_vae.recipe import validate

FIT_IMAGES = 1000  # PCA is fitted on at least so many images, where there are so many: millions of patches
Baseline = PatchPCA | LossyCodec


def choose_baseline(wanted: str, codec: LatentCodec, image: ImageConfig) -> Baseline:
    """The baseline with the rate of `codec`.

    wanted: jpeg, webp, pca or pca=SHARDS; pca alone is fitted on the shards that the codec was trained on.
    image: how the images are prepared on which the codecs are compared.

    Raises UserError for another name, and where there are no images to fit PCA on.
    """
    name, _, shards = wanted.partition("=")
    for kind in get_args(LossyFormat):
        if wanted == kind:
            return LossyCodec(
                kind,
                factor=codec.factor,
                numbers=codec.latent_channels,
                channels=codec.model.config.in_channels,
                device=codec.device,
            )
    if name != "pca":
        raise UserError(f"baseline {wanted!r}", "choose pca, pca=SHARDS, jpeg or webp")
    sources = (SourceConfig(shards=shards),) if shards else _trained_on(codec.source)
    return _fit(sources, codec, image).to(codec.device)


def _trained_on(source: ModelSource) -> tuple[SourceConfig, ...]:
    sources = source.training_sources
    if not sources:
        raise UserError(f"no recipe says what {source.name} was trained on", "name shards: --baseline pca=SHARDS")
    return tuple(validate(SourceConfig, part, f"data.train of {source.name}") for part in sources)


def _fit(sources: tuple[SourceConfig, ...], codec: LatentCodec, image: ImageConfig) -> PatchPCA:
    """PCA of images taken at even distances from the shards, and prepared as those of the comparison."""
    try:
        index = load_index(sources)
    except UserError as error:
        remedy = f"{error.remedy}; or name the shards: --baseline pca=SHARDS ({NEVER_STORED})"
        raise UserError(f"PCA has nothing to be fitted on ({error.what})", remedy) from error
    config = DataConfig(train=sources, batch=1, workers=0, image=image, broken_budget=index.samples)
    every = max(1, index.samples // FIT_IMAGES)
    taken = validation_batches(config, index, batch=1, rank=0, world=every)
    return fit_pca((batch.image for batch in taken), codec.factor, codec.latent_channels)
