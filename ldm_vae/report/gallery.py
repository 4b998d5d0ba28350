"""A codec and held-out shards -> a few images, their reconstructions and latents: the worst, the median, the best."""

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
from ldm_vae.data.shards.shard import LABEL, BrokenSample
from ldm_vae.data.shards.storage import Unreachable
from ldm_vae.data.stream.fetch import Fetcher
from ldm_vae.data.stream.order import SampleRef
from ldm_vae.errors import UserError
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.report.pictures import Pixels
from ldm_vae.report.results import ImageRow

WORST, MEDIAN, BEST = 3, 2, 3  # images of each kind
COUNT = WORST + MEDIAN + BEST
LARGEST = 768  # px; of a longer side the middle is coded and shown
RANKED_BY = ("lpips_vgg", "lpips_alex", "psnr")  # the first that is there


@dataclass(frozen=True)
class Choice:
    """An image to show.   why: its place among the others.   row: what was measured on it."""

    key: str
    why: str
    row: ImageRow | None


@dataclass(frozen=True)
class Held:
    """original, reconstruction: (C, h, w).   size: (H, W) of the whole image.   latent: (c, h', w'), raw, the mode.
    psnr: dB, of what is shown, where nothing was measured before; None also where that is infinite."""

    choice: Choice
    original: Pixels
    reconstruction: Pixels
    size: tuple[int, int]
    latent: NDArray[np.float32]
    psnr: float | None


@dataclass(frozen=True)
class Gallery:
    """weights_hash: of the codec that reconstructed.   notes: what a person should know about the choice."""

    held: list[Held]
    weights_hash: str
    facts: dict[str, str]
    notes: list[str] = field(default_factory=list)


def worst_first(rows: Sequence[ImageRow]) -> tuple[str | None, list[ImageRow]]:
    """The metric that ranks the images, and the rows that have it, in its order."""
    for name in RANKED_BY:
        if having := [row for row in rows if row.values.get(name) is not None]:
            sign = 1 if describe_metric(name).better == "higher" else -1
            return name, sorted(having, key=lambda row: (sign * (row.values[name] or 0.0), row.key))
    return None, []


def choose(rows: Sequence[ImageRow], title: str) -> list[Choice]:
    """Worst, median and best of rows that are sorted worst first; all where there are few."""
    count = len(rows)
    middle = range(count // 2 - MEDIAN // 2, count // 2 - MEDIAN // 2 + MEDIAN)
    chosen = [*range(WORST), *middle, *range(count - BEST, count)] if count > COUNT else list(range(count))
    places = {0: "worst", count // 2: "median", count - 1: "best"} if count > 2 else {0: "worst", count - 1: "best"}
    if count > COUNT:
        places |= dict.fromkeys(range(1, WORST), "among the worst") | dict.fromkeys(middle, "median")
        places |= dict.fromkeys(range(count - BEST, count - 1), "among the best")
    if count == 1:
        places = {0: "the only image"}

    def why(place: int) -> str:
        rank = f"{place + 1} of {count} by {title}, worst first"
        return f"{places[place]} ({rank})" if place in places else rank

    return [Choice(rows[i].key, why(i), rows[i]) for i in chosen]


def make_gallery(codec: LatentCodec, shards: str, choices: Sequence[Choice]) -> Gallery:
    """choices: by key; where the shards hold none of them, the first images are taken.

    Raises UserError where the shards cannot be read.
    """
    index = load_index(shards)
    notes: list[str] = []
    refs = _find(index, choices)
    if choices and not refs:
        notes.append(f"None of the images in results.json is in {shards}: these are the first ones there.")
    elif len(refs) < len(choices):
        notes.append(f"{len(choices) - len(refs)} of the images chosen from results.json are not in {shards}.")
    if not refs:
        first = [SampleRef(*index.locate(number), 0) for number in range(min(COUNT, index.samples))]
        refs = [(_first(index, ref), ref) for ref in first]
    held = []
    fetcher = Fetcher(index)
    for choice, ref in refs:
        try:
            held.append(_reconstruct(codec, choice, _read(fetcher, ref, codec.model.config.in_channels)))
        except (BrokenSample, BrokenImage) as error:
            notes.append(f"{choice.key} cannot be shown: {error.reason}.")
        except UserError as error:
            notes.append(f"{choice.key} cannot be shown: {error.what}.")
        except Unreachable as error:
            raise UserError(f"{shards} cannot be read", str(error)) from error
    if any(h.choice.row is not None and not _measured_whole(h.choice.row, h.size) for h in held):
        notes.append("The numbers were taken on resized or cropped images; pictures are shown as the shards hold them.")
    return Gallery(held, codec.weights_hash, _describe(codec), notes)


def _measured_whole(row: ImageRow, size: tuple[int, int]) -> bool:
    """Whether the numbers are about the image of that size; where the file does not say, they are taken to be."""
    return None in (row.height, row.width) or (row.height, row.width) == size


def _find(index: Index, choices: Sequence[Choice]) -> list[tuple[Choice, SampleRef]]:
    """Those that the shards hold, in the order of the choices."""
    wanted = {choice.key: choice for choice in choices}
    found: dict[str, SampleRef] = {}
    for number, shard in enumerate(index.shards if wanted else ()):
        for ordinal in range(shard.samples):
            key = shard.key(ordinal)
            if key in wanted and key not in found:
                found[key] = SampleRef(number, ordinal, 0)
    return [(choice, found[choice.key]) for choice in choices if choice.key in found]


def _first(index: Index, ref: SampleRef) -> Choice:
    return Choice(index.shards[ref.shard].key(ref.ordinal), "one of the first", None)


def _read(fetcher: Fetcher, ref: SampleRef, channels: int) -> NDArray[np.float32]:
    fields = fetcher.get(ref, list)
    fields.pop(LABEL, None)
    ((extension, data),) = fields.items()
    return decode_image(data, extension, channels)


def _reconstruct(codec: LatentCodec, choice: Choice, whole: NDArray[np.float32]) -> Held:
    """As `ldm-vae evaluate` does by default: no resize, mode of the posterior, rounded to 8 bits."""
    height, width = whole.shape[1:]
    top, left = max(0, height - LARGEST) // 2, max(0, width - LARGEST) // 2
    part = np.ascontiguousarray(whole[:, top : top + LARGEST, left : left + LARGEST])
    image = torch.from_numpy(part)[None]
    z = codec.draw(codec.moments(image))
    decoded = codec.decode_raw(z, size=(image.shape[2], image.shape[3]))
    original, reconstruction = to_uint8(image[0]), to_uint8(decoded[0]).cpu()
    latent = z[0].float().cpu().numpy()
    value = _psnr(original, reconstruction) if choice.row is None else None
    return Held(choice, original.numpy(), reconstruction.numpy(), (height, width), latent, value)


def _psnr(original: Tensor, reconstruction: Tensor) -> float | None:
    """dB, of what is shown; None where it is infinite."""
    from ldm_vae.metrics.image import psnr, squared_error  # with torchmetrics, which takes seconds to import

    error = int(squared_error(reconstruction[None], original[None]))
    return float(psnr(error, original.numel())) if error else None


def _describe(codec: LatentCodec) -> dict[str, str]:
    """What the network is, for people."""
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
