"""A look at some training images, taken from all over the data: their size, and how many can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm_vae.data.shards.index import Index, Part
from ldm_vae.data.stream.reader import validation_batches
from ldm_vae.data.stream.worker import Fault
from ldm_vae.errors import UserError
from train.recipe import Recipe

LOOKED_AT = 64  # images of each source that are decoded
SAMPLED = 512  # the same for a look that may take its time


@dataclass(frozen=True)
class Look:
    """What a look at some images has found.

    images: number of images looked at.
    broken: those that cannot be used, because they cannot be decoded or are smaller than the crop.
    first: (1, C, H, W), the first that can be used, prepared for training.
    """

    images: int
    broken: Sequence[Fault]
    first: Tensor

    def in_words(self) -> str:
        return _broken(self.broken, self.images)

    @property
    def usable(self) -> float:
        """Share of the images that can be used."""
        return 1.0 - len(self.broken) / self.images


def look_at_images(recipe: Recipe, index: Index, number: int) -> Look:
    """Decodes about `number` images of each source, at even distances, and prepares them as training does.

    Raises UserError if a source has a larger share of broken ones than a run takes, and for images of different sizes
    where several make a batch.
    """
    looked_at = 0
    broken: list[Fault] = []
    first: Tensor | None = None
    alone = recipe.data.batch == recipe.optimizer.accumulation
    for part in index.parts:
        shards = index.shards[part.first : part.stop]
        source = Index(shards, (Part(0, len(shards), 1.0),))
        data = recipe.data.model_copy(update={"workers": 0, "broken_budget": source.samples})
        images = validation_batches(data, source, batch=1, rank=0, world=max(1, source.samples // number))
        mine = 0
        for batch in images:
            mine += 1
            first = batch.image if first is None else first
            if first.shape != batch.image.shape and not alone:
                sizes = " and ".join(sorted({str(tuple(image.shape[1:])) for image in (first, batch.image)}))
                remedy = "set data.image.crop (and data.image.resize, which enlarges small ones)"
                raise UserError(f"images of different sizes in a batch: {sizes}", remedy)
        mine += len(images.faults)
        if first is None or len(images.faults) > max(1, recipe.data.broken_share * mine):
            remedy = "`ldm-vae check --decode` finds all; mend or remove them, or raise data.broken_share"
            raise UserError(_broken(images.faults, mine), remedy)
        looked_at, broken = looked_at + mine, broken + images.faults
    assert first is not None  # else the first source would have been refused
    return Look(looked_at, broken, first)


def _broken(faults: Sequence[Fault], looked_at: int) -> str:
    example = f", such as {faults[0].url} {faults[0].key} ({faults[0].reason})" if faults else ""
    return f"{len(faults)} of {looked_at} images looked at are broken{example}"
