"""Compares stored latents with the images they were made of: what the codec loses, and what storage adds to that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_vae.choices import USUAL_IMAGE_METRICS, MetricName
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.fit import fit_image
from ldm_vae.data.images.pixels import BrokenImage
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.errors import UserError
from ldm_vae.evaluation.results import EvaluationProtocol, Results, summarize
from ldm_vae.extras import require
from ldm_vae.fitting import Single
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.encode import names_of
from ldm_vae.latents.format import LatentJob
from ldm_vae.latents.stream import draw_latents
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.pixels import ImagePairs
from ldm_vae.overlap import Finish, begin, one_behind
from ldm_vae.padding import pad_to_multiple
from ldm_vae.transfer import Courier

OFF = "off"  # name of the number: root mean square of stored latent minus fresh one
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
    courier = Courier(codec.device)

    def launch(single: Single[int]) -> Finish[int]:
        item = single.item
        image, stored = courier.bring(find(item)[None]), courier.bring(latents.raw(item)[None])
        key, shape = latents.key(item), tuple(image.shape[1:])
        finish = begin(lambda: _measured(codec, job, image, stored, key, measure), codec.device)

        def finished() -> int:
            tensors, known = finish()
            if not _alike(tensors, known, latents):
                raise find.other(f"{key} in {find.place(item)} gives another latent")
            for name, size in known.sizes.items():
                values = {metric: tensors[f"{name} {metric}"] for metric in known.metrics[name]}
                rows.setdefault(name, []).extend(measure.rows([key], shape, values, known.missing[name]))
                sizes[name] = sizes.get(name, 0) + size
            return item

        return finished

    for _ in one_behind((Single(item, latents.size(item)) for item in items), launch, codec.device):
        done(1, len(items))
    protocol = EvaluationProtocol(image=job.image, metrics=tuple(metrics))
    return {
        name: Storage(sizes[name] / len(items), summarize(found, protocol, measure)) for name, found in rows.items()
    }


def evenly_spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below `count`, at even distances."""
    kept = count if limit is None else min(limit, count)
    return [i * count // kept for i in range(kept)]


@dataclass(frozen=True)
class _Known:
    """What the host knows of an image beside its numbers.

    alike: whether the stored latent has the shape of the fresh one; without it, nothing is measured.
    sizes: name of a way to store it -> bytes.
    metrics: name of such a way -> the numbers that there are.
    missing: name of such a way -> metric -> why it has no value.
    """

    alike: bool
    sizes: dict[str, int]
    metrics: dict[str, list[str]]
    missing: dict[str, dict[str, str]]


def _measured(
    codec: LatentCodec, job: LatentJob, image: Tensor, stored: Tensor, key: str, measure: ImageMetrics
) -> tuple[dict[str, Tensor], _Known]:
    """What `measure` gives for each way to store an image, as "name metric"; and how far the stored latent is off.

    image: (1, C, H, W).   stored: (1, c, h, w).
    """
    moments = codec.moments(pad_to_multiple(image, job.multiple))
    drawn = draw_latents(codec, job, moments, [key])
    if stored.shape != drawn.shape:
        return {}, _Known(False, {}, {}, {})
    fresh = codec.draw(moments)
    variants = {
        "float32": (fresh, 4 * fresh.numel()),
        "float16": (stored, 2 * stored.numel()),
        "8 bits": (round_to_bits(stored, 8), stored.numel() + 8 * stored.shape[1]),
    }
    tensors = {OFF: (stored - drawn).double().square().mean().sqrt()}
    known = _Known(True, {name: size for name, (_, size) in variants.items()}, {}, {})
    for name, (z, _) in variants.items():
        reconstruction = codec.decode_raw(z, size=(image.shape[2], image.shape[3]))
        values, known.missing[name] = measure.measured(ImagePairs(reconstruction, image))
        known.metrics[name] = list(values)
        tensors |= {f"{name} {metric}": value for metric, value in values.items()}
    return tensors, known


def _alike(tensors: Mapping[str, Tensor], known: _Known, latents: LatentDataset) -> bool:
    """Whether a stored latent is of the image that was encoded now, with the same noise.

    Latents of two images differ by about 1.4 standard deviations of all latents, those of one image by rounding: by
    0.01 where the network ran in bfloat16. A posterior that is much wider than its means differ hides another image.
    """
    statistics = latents.info.statistics
    if not known.alike or statistics is None:
        return known.alike
    return float(tensors[OFF]) <= UNLIKE * float(statistics["std"])


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
            image = fit_image(decode_image(data, field, job.image_channels), job.image, None)
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
