"""Compares stored latents with the images they were made of: what the codec loses, and what storage adds to that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.choices import USUAL_IMAGE_METRICS, MetricName
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.pixels import BrokenImage
from ldm_vae.data.images.prepare import prepare_image
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.devices import in_float64
from ldm_vae.errors import UserError
from ldm_vae.evaluation.results import EvaluationProtocol, Results, summarize
from ldm_vae.extras import require
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.encode import names_of
from ldm_vae.latents.stream import draw_latents
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.pixels import ImagePairs
from ldm_vae.padding import pad_to_multiple

UNLIKE = 0.1  # standard deviations of all latents; latents that differ by more are not of one image


@dataclass(frozen=True)
class Storage:
    """What one way to store latents costs.

    bytes: average for an image, without headers of files.
    results: how far decoded images are from the originals.
    """

    bytes: float
    results: Results


def measure_roundtrip(
    codec: LatentCodec,
    latents: LatentDataset,
    images: Index,
    *,
    metrics: Sequence[MetricName] = USUAL_IMAGE_METRICS,
    limit: int | None = None,
    done: Callable[[int, int], None],
) -> dict[str, Storage]:
    """Decodes stored latents and measures them as `ldm-vae evaluate` does.

    codec: the codec that made the latents.
    latents: the stored latents.
    images: the shards, or the folder of images, that were encoded.
    metrics: what is measured.
    limit: at most so many latents, evenly spread over all; None measures all.
    done(images, total): called after each image.
    Returns the costs of "float32", the posterior's mode as the codec encodes it now; of "float16", as it is stored; and
    of "8 bits", as `round_to_bits` leaves it. Raises UserError if the images are not those that were encoded,
    and MissingExtra where the extra `metrics` is not installed.
    """
    require("metrics", "roundtrip")
    job = latents.info.job
    find = _Pictures(latents, images)
    measure = ImageMetrics(metrics, codec.device)
    rows: dict[str, list[MeasuredImage]] = {}
    sizes: dict[str, int] = {}
    items = evenly_spread(len(latents), limit)
    done(0, len(items))
    for item in items:
        image = find(item)[None].to(codec.device)
        stored = latents.raw(item)[None].to(codec.device)
        moments = codec.moments(pad_to_multiple(image, job.multiple))
        if not _alike(stored, draw_latents(codec, job, moments, [latents.key(item)]), latents):
            raise find.other(f"{latents.key(item)} in {find.place(item)} gives another latent")
        fresh = codec.draw(moments)
        variants = {
            "float32": (fresh, 4 * fresh.numel()),
            "float16": (stored, 2 * stored.numel()),
            "8 bits": (round_to_bits(stored, 8), stored.numel() + 8 * stored.shape[1]),
        }
        for name, (z, size) in variants.items():
            reconstruction = codec.decode_raw(z, size=(image.shape[2], image.shape[3]))
            rows.setdefault(name, []).extend(measure(ImagePairs(reconstruction, image), [latents.key(item)]))
            sizes[name] = sizes.get(name, 0) + size
        done(1, len(items))
    protocol = EvaluationProtocol(image=job.image, metrics=tuple(metrics))
    return {
        name: Storage(sizes[name] / len(items), summarize(found, protocol, measure)) for name, found in rows.items()
    }


def evenly_spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below `count`, at even distances."""
    kept = count if limit is None else min(limit, count)
    return [i * count // kept for i in range(kept)]


def _alike(stored: Tensor, drawn: Tensor, latents: LatentDataset) -> bool:
    """Whether a stored latent is of the image that `drawn` was drawn from, with the same noise.

    Latents of two images differ by about 1.4 standard deviations of all latents, those of one image by rounding: by
    0.01 where the network ran in bfloat16. A posterior that is much wider than its means differ hides another image.
    """
    statistics = latents.info.statistics
    if stored.shape != drawn.shape or statistics is None:
        return stored.shape == drawn.shape
    return float(in_float64(stored - drawn).square().mean().sqrt()) <= UNLIKE * float(statistics["std"])


class _Pictures:
    """Finds the image (C, H, W) of a stored latent, as it was encoded."""

    def __init__(self, latents: LatentDataset, images: Index) -> None:
        self.latents = latents
        self.reader = RangeReader()
        self.shards = dict(zip(names_of(images), images.shards, strict=True))
        self.ordinals: dict[str, dict[str, int]] = {}  # name of a shard -> key -> place in it

    def __call__(self, item: int) -> Tensor:
        name, key = self.latents.shard(item), self.latents.key(item)
        try:
            shard = self.shards[name]
            if name not in self.ordinals:
                self.ordinals[name] = {shard.key(ordinal): ordinal for ordinal in range(shard.samples)}
            ordinal = self.ordinals[name][key]
        except KeyError:
            raise self.other(f"{key} of {name} is not among them") from None
        job = self.latents.info.job
        if (field := shard.picture(ordinal)) is None:
            raise self.other(f"{key} in {shard.name} has no picture now")
        try:
            data = self.reader.read(*shard.place(ordinal, field))
            image = prepare_image(data, field, job.image, None).floats()
        except (BrokenImage, Missing) as error:
            raise self.other(f"{key} in {shard.name} cannot be read now ({error})") from None
        if image.shape[1:] != self.latents.size(item):
            raise self.other(f"{key} in {shard.name} has another size")
        return torch.from_numpy(image)

    def place(self, item: int) -> str:
        """The name of the shard or folder that the image lies in."""
        return self.shards[self.latents.shard(item)].name

    def other(self, reason: str) -> UserError:
        """The error where the images are not those that were encoded."""
        return UserError(
            f"these are not the images of {self.latents.folder}", f"give those that were encoded ({reason})"
        )


def round_to_bits(z: Tensor, bits: int) -> Tensor:
    """Rounds (B, c, h, w) to 2^bits even steps between the extreme values of each channel of each image.

    That takes `bits` bits for each number, and two float32 for each channel.
    """
    low, high = z.amin(dim=(2, 3), keepdim=True), z.amax(dim=(2, 3), keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(z.dtype).tiny)
    return low + ((z - low) / step).round() * step
