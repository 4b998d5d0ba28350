"""Compares stored latents with the images they were made of: what the codec loses, and what storage adds to that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.choices import USUAL_IMAGE_METRICS, MetricName
from ldm_vae.codec import LatentCodec, pad_to_multiple
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.fit import fit_image
from ldm_vae.data.images.pixels import EXTENSIONS, BrokenImage
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.errors import UserError
from ldm_vae.evaluation.results import EvaluationProtocol, Results, summarize
from ldm_vae.extras import require
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.pixels import ImagePairs


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
    done: Callable[[int, int], None],
) -> dict[str, Storage]:
    """Decodes every stored latent and measures it as `ldm-vae evaluate` does.

    codec: the codec that made the latents.
    latents: the stored latents.
    images: the shards that were encoded.
    metrics: what is measured.
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
    for item in range(len(latents)):
        image = find(item)[None].to(codec.device)
        stored = latents.raw(item)[None]
        fresh = codec.draw(codec.moments(pad_to_multiple(image, job.multiple)))
        variants = {
            "float32": (fresh, 4 * fresh.numel()),
            "float16": (stored, 2 * stored.numel()),
            "8 bits": (round_to_bits(stored, 8), stored.numel() + 8 * stored.shape[1]),
        }
        for name, (z, size) in variants.items():
            reconstruction = codec.decode_raw(z, size=(image.shape[2], image.shape[3]))
            rows.setdefault(name, []).extend(measure(ImagePairs(reconstruction, image), [latents.key(item)]))
            sizes[name] = sizes.get(name, 0) + size
        done(1, len(latents))
    protocol = EvaluationProtocol(image=job.image, metrics=tuple(metrics))
    return {
        name: Storage(sizes[name] / len(latents), summarize(found, protocol, measure)) for name, found in rows.items()
    }


class _Pictures:
    """Finds the image (C, H, W) of a stored latent, as it was encoded."""

    def __init__(self, latents: LatentDataset, images: Index) -> None:
        self.latents = latents
        self.reader = RangeReader()
        self.shards = {shard.name: shard for shard in images.shards}
        self.ordinals: dict[str, dict[str, int]] = {}  # name of a shard -> key -> place in it

    def __call__(self, item: int) -> Tensor:
        name, key = self.latents.shard(item), self.latents.key(item)
        try:
            shard = self.shards[name]
            if name not in self.ordinals:
                self.ordinals[name] = {shard.key(ordinal): ordinal for ordinal in range(shard.samples)}
            fields = shard.fields(self.ordinals[name][key])
        except KeyError:
            raise self._other(f"{name} with {key} is not among them") from None
        job = self.latents.info.job
        try:
            extension = next(name for name in EXTENSIONS if name in fields)
            data = self.reader.read(shard.url, *fields[extension])
            image = fit_image(decode_image(data, extension, job.image_channels), job.image, None)
        except (BrokenImage, StopIteration, Missing) as error:
            raise self._other(f"{key} in {name} cannot be read now ({error})") from None
        if image.shape[1:] != self.latents.size(item):
            raise self._other(f"{key} in {name} has another size")
        return torch.from_numpy(image)

    def _other(self, reason: str) -> UserError:
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
