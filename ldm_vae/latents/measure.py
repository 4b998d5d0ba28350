"""Measures a codec on images: the statistics of its latents, and the largest activation of its layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import measured_batches
from ldm_vae.errors import UserError
from ldm_vae.metrics.latent import Activation, LatentMoments, LatentStatistics
from ldm_vae.overlap import Finish, begin, one_behind
from ldm_vae.passwords import keep_aside
from ldm_vae.printable import printable
from ldm_vae.ranks import all_gather, rank_and_world
from ldm_vae.transfer import Courier

logger = logging.getLogger(__name__)
ACTIVATION_IMAGES = 64  # how many images are also decoded, for the activations


class LatentMeasurement:
    """What one process has measured.

    moments: sums over all latents.
    activation: the largest activation; None before an image was decoded, and where no module returns a tensor.
    broken: keys of images whose posterior is not finite, in float32 either.
    """

    def __init__(self, channels: int) -> None:
        self.moments = LatentMoments(channels)
        self.activation: Activation | None = None
        self.broken: list[str] = []

    def merge(self, other: LatentMeasurement) -> None:
        """Adds what another process gave."""
        self.moments.merge(other.moments)
        self.broken += other.broken
        if other.activation is not None:
            self._add_activation(other.activation)

    def add(self, keys: Sequence[str], watched: int, tensors: Mapping[str, Tensor], known: _Known) -> None:
        """Adds a batch: what `_measured` gave, on the host."""
        self.broken += [keys[i] for i in known.broken]
        if "means" in tensors:
            self.moments.add_each(tensors["means"], tensors["squares"], known.values)
        if known.layers:
            named = zip(known.layers, tensors["layers"].tolist(), strict=True)
            layer, value = max(named, key=lambda pair: pair[1])
            self._add_activation(Activation(largest=value, layer=layer, images=watched))

    def _add_activation(self, other: Activation) -> None:
        if self.activation is None:
            self.activation = other
            return
        larger = max(self.activation, other, key=lambda activation: activation.largest)
        self.activation = larger.model_copy(update={"images": self.activation.images + other.images})


def measure_statistics(
    codec: LatentCodec, shards: str, image: ImageConfig, *, batch: int, done: Callable[[int, int], None]
) -> LatentStatistics:
    """The statistics over all images of `shards`. The processes share the images, and all get the same result.

    image: resize and crop.
    batch: images at a time.
    done(images, total): called after each batch with its number of images, and the number in this process's share.
    Broken images are left out, with a warning that counts them. Raises UserError if no image is whole.
    """
    shards = keep_aside(shards)
    index = load_index(shards)
    rank, world = rank_and_world()
    stream = measured_batches(index, shards, image, batch=batch, device=codec.device, rank=rank, world=world)

    def counted() -> Iterator[Batch]:
        for found in stream:
            yield found
            done(len(found.key), len(range(rank, index.samples, world)))

    mine = measure_latents(codec, counted())
    gathered = all_gather((mine, stream.faults))
    total = LatentMeasurement(codec.latent_channels)
    left_out = []
    for measurement, faults in gathered:
        total.merge(measurement)
        left_out += [f"{fault.key} ({fault.reason})" for fault in faults]
    left_out += [f"{key} (its latent is not finite)" for key in total.broken]
    if left_out and rank == 0:
        logger.warning("left out %d of %d images, the first %s", len(left_out), index.samples, printable(left_out[0]))
    if not total.moments.images:
        raise UserError(f"no image of {shards} could be measured", f"{len(left_out)} are broken, such as {left_out[0]}")
    protocol = {
        "resize": image.resize,
        "resize_filter": image.resize_filter,
        "crop": image.crop,
        "padding": "to a multiple of f, by reflection",
        "precision": codec.precision,
    }
    return LatentStatistics.of(
        total.moments,
        codec=codec.weights_hash,
        latents="mode",
        protocol=protocol,
        data=shards,
        activation=total.activation,
    )


def measure_latents(codec: LatentCodec, batches: Iterable[Batch]) -> LatentMeasurement:
    """Sums over the posterior's modes of all images, and the largest activation over the first images.

    batches: images in [-1, 1], of one size within a batch.
    """
    result = LatentMeasurement(codec.latent_channels)
    courier = Courier(codec.device)

    def launch(watched: _Watched) -> Finish[None]:
        images, keys = courier.bring(watched.batch.image), watched.batch.key
        finish = begin(lambda: _measured(codec, images, watched.images), codec.device)
        return lambda: result.add(keys, watched.images, *finish())

    for _ in one_behind(_watched(batches), launch, codec.device):
        pass
    return result


@dataclass(frozen=True)
class _Watched:
    """A batch, the activations of whose first images are watched.

    images: how many.
    """

    batch: Batch
    images: int

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch.shape

    def part(self, start: int, stop: int) -> _Watched:
        return _Watched(self.batch.part(start, stop), min(max(self.images - start, 0), stop - start))


def _watched(batches: Iterable[Batch]) -> Iterator[_Watched]:
    to_watch = ACTIVATION_IMAGES
    for batch in batches:
        watched = min(to_watch, len(batch))
        to_watch -= watched
        yield _Watched(batch, watched)


@dataclass(frozen=True)
class _Known:
    """What the host knows of a batch beside its numbers.

    broken: places of the images whose posterior is not finite.
    values: in each channel of a latent.
    layers: names of the watched ones that gave anything.
    """

    broken: list[int]
    values: int
    layers: list[str]


def _measured(codec: LatentCodec, images: Tensor, watched: int) -> tuple[dict[str, Tensor], _Known]:
    """The sums over each latent of a batch, "means" and "squares", and the largest |output| of layers as "layers".

    watched: of so many images, the first ones; they are decoded, too.
    """
    largest = _watch(codec, images[:watched]) if watched else {}
    moments, broken = codec.checked_moments(images)
    tensors = {"layers": torch.stack(list(largest.values()))} if largest else {}
    if broken:
        moments = moments[[i for i in range(len(moments)) if i not in broken]]
    if len(moments):
        tensors["means"], tensors["squares"] = LatentMoments.of_each(codec.draw(moments))
    return tensors, _Known(broken, moments.shape[2] * moments.shape[3], list(largest))


def _watch(codec: LatentCodec, images: Tensor) -> dict[str, Tensor]:
    """Encodes and decodes images; name of a layer -> its largest |output|."""
    with largest_outputs(codec.model) as largest:
        moments, broken = codec.checked_moments(images)
        if broken:
            moments = moments[[i for i in range(len(images)) if i not in broken]]
        if len(moments):
            codec.decode_raw(codec.draw(moments))
    return largest


@contextmanager
def largest_outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Records the largest |output| of every module that runs inside the block: name of the module -> value.

    The order is that in which modules first finish. Sums with shortcuts count, as outputs of their residual block.
    Indices, such as those of a codebook, are no activations.
    """
    largest: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            peak = output.detach().abs().amax()
            largest[name] = torch.maximum(largest[name], peak) if name in largest else peak

    hooks = [module.register_forward_hook(partial(record, name)) for name, module in model.named_modules() if name]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
