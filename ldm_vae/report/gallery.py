"""Reconstructs a few held-out images with a codec: the worst, the median and the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.pixels import BrokenImage, to_uint8
from ldm_vae.data.shards.index import Index, load_index
from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.shards.retry import Forbidden, Unreachable
from ldm_vae.data.shards.shard import BrokenSample
from ldm_vae.data.stream.fetch import Fetcher
from ldm_vae.data.stream.order import SampleRef
from ldm_vae.errors import UserError
from ldm_vae.interop.results import ImageRow
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.metrics.image import psnr, squared_error
from ldm_vae.report.pictures import Pixels

WORST, MEDIAN, BEST = 3, 2, 3  # how many images of each kind
GALLERY_IMAGES = WORST + MEDIAN + BEST
LONGEST_SIDE = 768  # px; of a larger image only the middle is coded and shown
RANKED_BY = ("lpips_vgg", "lpips_alex", "psnr")  # the first metric that was measured


@dataclass(frozen=True)
class Choice:
    """An image to show.

    why: its rank among the others, in words.
    row: what was measured on it; None where nothing was.
    """

    key: str
    why: str
    row: ImageRow | None


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery with its reconstruction.

    original, reconstruction: (C, h, w), the part that is shown.
    size: (H, W) of the whole image.
    latent: (c, h', w'), raw mode of the posterior.
    psnr: PSNR of the part that is shown, in dB; None where it is infinite, or where the image was measured before.
    """

    choice: Choice
    original: Pixels
    reconstruction: Pixels
    size: tuple[int, int]
    latent: NDArray[np.float32]
    psnr: float | None


@dataclass(frozen=True)
class Gallery:
    """Images with their reconstructions by a codec.

    facts: what the network is, in words.
    notes: what a person should know about the choice of images.
    """

    images: list[GalleryImage]
    facts: dict[str, str]
    notes: list[str] = field(default_factory=list)


def worst_first(rows: Sequence[ImageRow]) -> tuple[str | None, list[ImageRow]]:
    """The metric that ranks the images, and the rows that have it, from worst to best."""
    for name in RANKED_BY:
        if having := [row for row in rows if row.values.get(name) is not None]:
            sign = 1 if describe_metric(name).better == "higher" else -1
            return name, sorted(having, key=lambda row: (sign * (row.values[name] or 0.0), row.key))
    return None, []


def choose(rows: Sequence[ImageRow], title: str) -> list[Choice]:
    """The worst, median and best of the rows, which are sorted worst first; all rows where there are few."""
    count = len(rows)
    middle = range(count // 2 - MEDIAN // 2, count // 2 - MEDIAN // 2 + MEDIAN)
    chosen = [*range(WORST), *middle, *range(count - BEST, count)] if count > GALLERY_IMAGES else list(range(count))
    places = {0: "worst", count // 2: "median", count - 1: "best"} if count > 2 else {0: "worst", count - 1: "best"}
    if count > GALLERY_IMAGES:
        places |= dict.fromkeys(range(1, WORST), "among the worst") | dict.fromkeys(middle, "median")
        places |= dict.fromkeys(range(count - BEST, count - 1), "among the best")
    if count == 1:
        places = {0: "the only image"}

    def why(place: int) -> str:
        rank = f"{place + 1} of {count} by {title}, worst first"
        return f"{places[place]} ({rank})" if place in places else rank

    return [Choice(rows[i].key, why(i), rows[i]) for i in chosen]


def make_gallery(codec: LatentCodec, shards: str, choices: Sequence[Choice]) -> Gallery:
    """The chosen images of the shards, which are found by their keys.

    Where the shards hold none of the chosen images, their first images are taken.

    Raises UserError where the shards cannot be read.
    """
    index = load_index(shards)
    notes: list[str] = []
    refs = _find(index, choices)
    if choices and not refs:
        notes.append(f"None of the images in results.json is in {shards}. Shown are the first images there.")
    elif len(refs) < len(choices):
        notes.append(f"{len(choices) - len(refs)} of the images chosen from results.json are not in {shards}.")
    if not refs:
        first = [SampleRef(*index.locate(number), 0) for number in range(min(GALLERY_IMAGES, index.samples))]
        refs = [(_first(index, ref), ref) for ref in first]
    images = []
    fetcher = Fetcher(index)
    for choice, ref in refs:
        try:
            images.append(_gallery_image(codec, choice, _read_image(fetcher, ref, codec.model.config.in_channels)))
        except (BrokenSample, BrokenImage) as error:
            notes.append(f"{choice.key} cannot be shown: {error.reason}.")
        except (Unreachable, Forbidden):
            raise
        except UserError as error:
            notes.append(f"{choice.key} cannot be shown: {error.what}.")
    if any(one.choice.row is not None and not _measured_whole(one.choice.row, one.size) for one in images):
        notes.append(
            "The numbers were measured on resized or cropped images; the pictures are shown as they are in the shards."
        )
    return Gallery(images, _network_facts(codec), notes)


def _measured_whole(row: ImageRow, size: tuple[int, int]) -> bool:
    """Whether the numbers belong to the image at that size; also true where the file does not give a size."""
    return None in (row.height, row.width) or (row.height, row.width) == size


def _find(index: Index, choices: Sequence[Choice]) -> list[tuple[Choice, SampleRef]]:
    """The choices that the shards hold, in their order, with their places."""
    wanted = {choice.key: choice for choice in choices}
    places: dict[str, SampleRef] = {}
    for number, shard in enumerate(index.shards if wanted else ()):
        for ordinal in range(shard.samples):
            key = shard.key(ordinal)
            if key in wanted and key not in places:
                places[key] = SampleRef(number, ordinal, 0)
    return [(choice, places[choice.key]) for choice in choices if choice.key in places]


def _first(index: Index, ref: SampleRef) -> Choice:
    return Choice(index.shards[ref.shard].key(ref.ordinal), "one of the first", None)


def _read_image(fetcher: Fetcher, ref: SampleRef, channels: int) -> NDArray[np.float32]:
    fields = fetcher.get(ref, list)
    fields.pop(LABEL, None)
    ((extension, data),) = fields.items()
    return decode_image(data, extension, channels)


def _gallery_image(codec: LatentCodec, choice: Choice, whole: NDArray[np.float32]) -> GalleryImage:
    """Reconstructs as `ldm-vae evaluate` does by default: without a resize, from the mode, rounded to 8 bits."""
    height, width = whole.shape[1:]
    top, left = max(0, height - LONGEST_SIDE) // 2, max(0, width - LONGEST_SIDE) // 2
    part = np.ascontiguousarray(whole[:, top : top + LONGEST_SIDE, left : left + LONGEST_SIDE])
    image = torch.from_numpy(part)[None]
    z = codec.draw(codec.moments(image))
    decoded = codec.decode_raw(z, size=(image.shape[2], image.shape[3]))
    original, reconstruction = to_uint8(image[0]), to_uint8(decoded[0]).cpu()
    latent = z[0].float().cpu().numpy()
    value = _finite_psnr(original, reconstruction) if choice.row is None else None
    return GalleryImage(choice, original.numpy(), reconstruction.numpy(), (height, width), latent, value)


def _finite_psnr(original: Tensor, reconstruction: Tensor) -> float | None:
    """PSNR in dB; None where it is infinite."""

    error = int(squared_error(reconstruction[None], original[None]))
    return float(psnr(error, original.numel())) if error else None


def _network_facts(codec: LatentCodec) -> dict[str, str]:
    """What the network is, in words."""
    config: Any = codec.model.config
    values = codec.factor**2 * config.in_channels / codec.latent_channels
    parameters = sum(parameter.numel() for parameter in codec.model.parameters())
    return {
        "downsampling": f"f{codec.factor}: {codec.factor} × {codec.factor} pixels per latent position",
        "latent channels": str(codec.latent_channels),
        "compression": f"{values:.4g} image values per latent value",
        "parameters": f"{parameters / 1e6:.2f} million",
        "weights": f"{codec.source.weights or 'as exported'}, after step {codec.source.step}",
        "weights sha256": codec.weights_hash,
    }
