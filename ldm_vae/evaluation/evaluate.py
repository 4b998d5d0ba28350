"""Measures a codec on images, and records the protocol.

Published numbers for one autoencoder differ by 2 dB, because resize, crop, rounding and sampling differ. So the
protocol is part of the result. Here an image is reconstructed at its own size from the posterior's mode (or from a
sample, where asked for), clamped and rounded to 8 bits like the original; results are means over images.

Each of several processes measures its own images, and the measurements are then gathered. The same images give the same
numbers in any order.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ldm_vae.arithmetic import EXACT, exact_float32
from ldm_vae.checks import open_checks
from ldm_vae.codec import LatentCodec, NonFiniteError
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import measured_batches
from ldm_vae.errors import UserError
from ldm_vae.evaluation.results import BROKEN, EvaluationProtocol, NoImageError, Results, summarize
from ldm_vae.extras import require
from ldm_vae.finite import at_places, finite_samples
from ldm_vae.interop.results import CONTENT
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.pixels import ImagePairs
from ldm_vae.metrics.sets import FeatureSets, NetworkName, SetMetrics
from ldm_vae.overlap import Finish, begin, one_behind
from ldm_vae.passwords import keep_aside
from ldm_vae.printable import printable
from ldm_vae.ranks import all_gather, rank_and_world
from ldm_vae.transfer import Courier

logger = logging.getLogger(__name__)


class ImageCodec(Protocol):
    """What can be evaluated: a `LatentCodec`, or any other way to encode images as fewer numbers and decode them."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], any size -> latents, without a random draw."""

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Latents -> (B, C, H, W), unclamped.

        size: (H, W) of the images.
        """


class Observer(Protocol):
    """Sees more of a codec than images show."""

    def of_batch(self) -> dict[str, Tensor]:
        """What was seen of the batch that was decoded last, on the codec's device."""

    def add(self, seen: Mapping[str, Tensor]) -> None:
        """Adds what `of_batch` gave, on the host."""


OBSERVED = "observed "  # begins the names of what an observer has seen


class Metrics:
    """The metrics of a protocol with their networks, to be used for several codecs. All processes must make one."""

    def __init__(
        self, protocol: EvaluationProtocol, device: torch.device | str, *, inception_file: Path | None = None
    ) -> None:
        """inception_file: weights of Inception; without it they are looked for as pretrained/inception.py says.

        Raises MissingExtra where the extra `metrics` is not installed.
        """
        require("metrics", "evaluation")
        self.image = ImageMetrics(protocol.image_metrics, device, rounding=protocol.rounding)
        lpips = self.image.metrics.get("lpips_vgg")
        self.sets = SetMetrics(
            protocol.set_metrics,
            device,
            rounding=protocol.rounding,
            vgg=lpips.network if lpips else None,
            inception_file=inception_file,
        )


def evaluate_batches(
    codec: ImageCodec,
    batches: Iterable[Batch],
    protocol: EvaluationProtocol | None = None,
    *,
    metrics: Metrics | None = None,
) -> Results:
    """Encodes, decodes and measures every image. Only one batch is in memory at a time, on a GPU two.

    batches: this process's share of the images, prepared as `protocol` says; the images of a batch have one size.
    metrics: the metrics of `protocol`, if they were made already.

    Returns what all processes measured; all of them must call this. Raises NoImageError where there is no image.
    """
    protocol = protocol or EvaluationProtocol()
    metrics = metrics or Metrics(protocol, codec.device)
    check_latent(codec, protocol)
    features = FeatureSets(metrics.sets)
    sample = protocol.seed if protocol.latent == "sample" else None
    mine = measure_batches(codec, batches, metrics.image, features, sample=sample)
    rows = [row for part in all_gather(mine) for row in part]
    return summarize(rows, protocol, metrics.image, features)


def check_latent(codec: ImageCodec, protocol: EvaluationProtocol) -> None:
    """Raises UserError where the protocol asks for a sample of the posterior, and the codec has none."""
    if protocol.latent != "sample":
        return
    if not isinstance(codec, LatentCodec):
        raise UserError("this codec has no posterior to sample from", "evaluate it with the latent `mode`")
    codec.require_posterior()


def evaluate_shards(
    codec: ImageCodec,
    shards: str,
    protocol: EvaluationProtocol | None = None,
    *,
    batch: int = 8,
    metrics: Metrics | None = None,
    done: Callable[[int, int], None] = lambda images, total: None,
) -> Results:
    """`evaluate_batches` on every image of some shards, which the processes share; returns the same results on each.

    Broken images are left out: a warning and the protocol say how many.

    shards: folder, glob, brace pattern or URL.
    batch: images of one size that each process encodes at a time.
    done(images, total): called after every batch; `total` is the number of images of this process.
    """
    protocol, shards = protocol or EvaluationProtocol(), keep_aside(shards)
    index = load_index(shards)
    rank, world = rank_and_world()
    stream = measured_batches(index, shards, protocol.image, batch=batch, device=codec.device, rank=rank, world=world)

    def batches() -> Iterator[Batch]:
        for images in stream:
            yield images
            done(len(images.key), len(range(rank, index.samples, world)))

    try:
        results: Results | None = evaluate_batches(codec, batches(), protocol, metrics=metrics)
    except NoImageError:
        results = None
    faults = [fault for found in all_gather(stream.faults) for fault in found]
    broken = (
        f"{len(faults)} of {index.samples} images, the first {faults[0].key} ({faults[0].reason})" if faults else ""
    )
    if results is None:
        raise UserError(f"{shards} has no image for this codec and protocol", f"broken are {broken}")
    if faults and rank == 0:
        logger.warning("left out %s", printable(broken))
    where = {"shards": shards, CONTENT: index.fingerprint, "left_out": len(faults)}
    return replace(results, protocol=where | results.protocol)


@exact_float32()
def measure_batches(
    codec: ImageCodec,
    batches: Iterable[Batch],
    metrics: ImageMetrics,
    features: FeatureSets | None = None,
    *,
    sample: int | None = None,
    observer: Observer | None = None,
) -> list[MeasuredImage]:
    """Measures the images of this process, one row for each; adds their features to `features`.

    sample: seed of the posterior samples that a LatentCodec decodes; None: the mode is decoded.
    observer: sees each batch once, when nothing can fail any more.
    """
    courier = Courier(codec.device)

    def launch(batch: Batch) -> Finish[list[MeasuredImage]]:
        image = courier.bring(batch.image)
        finish = begin(lambda: _measured(codec, image, batch.key, metrics, features, sample, observer), codec.device)
        return lambda: _rows(batch, *finish(), metrics, features, observer)

    return [row for rows in one_behind(batches, launch, codec.device) for row in rows]


@dataclass(frozen=True)
class _Known:
    """What the host knows of a batch beside its numbers.

    whole: places of the images that have a finite reconstruction; the numbers are theirs.
    metrics, networks: why others of these give no number.
    """

    whole: list[int]
    metrics: dict[str, str]
    networks: dict[NetworkName, str]


def _measured(
    codec: ImageCodec,
    image: Tensor,
    keys: Sequence[str],
    metrics: ImageMetrics,
    features: FeatureSets | None,
    sample: int | None,
    observer: Observer | None,
) -> tuple[dict[str, Tensor], _Known]:
    """Reconstructs and measures a batch on the codec's device.

    Gives what the metrics give, features by the name of their network, and what the observer saw.
    """
    whole, reconstruction = _reconstruct(codec, image, keys, sample)
    if not whole:
        return {}, _Known([], {}, {})
    pairs = ImagePairs(reconstruction, at_places(image, whole))
    values, missing = metrics.measured(pairs)
    found, lacking = ({}, {}) if features is None else features.measured(pairs)
    seen = {} if observer is None else {f"{OBSERVED}{name}": x for name, x in observer.of_batch().items()}
    return values | {str(name): x for name, x in found.items()} | seen, _Known(whole, missing, lacking)


def _rows(
    batch: Batch,
    values: dict[str, Tensor],
    known: _Known,
    metrics: ImageMetrics,
    features: FeatureSets | None,
    observer: Observer | None,
) -> list[MeasuredImage]:
    """The rows of a batch, from what `_measured` gave, on the host; its features are added to `features`."""
    rows = []
    if known.whole:
        rows += metrics.rows([batch.key[i] for i in known.whole], batch.shape, values, known.metrics)
        if observer is not None:
            seen = {name.removeprefix(OBSERVED): x for name, x in values.items() if name.startswith(OBSERVED)}
            observer.add(seen)
        if features is not None:
            networks = [name for name in features.metrics.networks if name in values]
            features.add({name: values[name] for name in networks}, known.networks, rows)
    for i in sorted(set(range(len(batch.key))) - set(known.whole)):
        row = metrics.without_reconstruction(batch.image[i], batch.key[i], BROKEN)
        if features is not None:
            features.without_reconstruction(row, BROKEN)
        rows.append(row)
    return rows


def _reconstruct(codec: ImageCodec, image: Tensor, keys: Sequence[str], sample: int | None) -> tuple[list[int], Tensor]:
    """The indices of the images that have a finite reconstruction, and these reconstructions.

    Among checks that are read later, all of them.
    """
    places = list(range(len(image)))
    size = (image.shape[2], image.shape[3])
    while places:
        try:
            chosen = at_places(image, places)
            if sample is None:
                reconstruction = codec.decode(codec.encode(chosen), size=size)
            else:
                assert isinstance(codec, LatentCodec)
                z = _draw(codec, chosen, [keys[place] for place in places], sample)
                reconstruction = codec.decode_raw(z, size=size)
        except NonFiniteError as error:
            places = [place for i, place in enumerate(places) if i not in error.samples]
            continue
        if reconstruction.shape[1] != image.shape[1]:  # torch would broadcast one to the other without an error
            what = f"a codec from {image.shape[1]} to {reconstruction.shape[1]} channels"
            raise UserError(what, "only a codec that gives back its own image can be measured")
        if (checks := open_checks()) is not None:
            checks.require(finite_samples(reconstruction))
            return places, reconstruction
        finite = finite_samples(reconstruction).tolist()
        return list(compress(places, finite)), at_places(reconstruction, list(compress(range(len(finite)), finite)))
    return [], image[:0]


def _draw(codec: LatentCodec, images: Tensor, keys: Sequence[str], seed: int) -> Tensor:
    """(B, C, H, W) -> (B, c, h, w), raw samples of the posterior.

    The noise of an image depends on the seed and the image's key alone, so it is the same in any batch and process.
    """
    moments = codec.moments(images)
    drawn = []
    for i, key in enumerate(keys):
        number = int.from_bytes(
            hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest()[:8], "big", signed=True
        )
        noise = torch.Generator().manual_seed(number)
        drawn.append(codec.draw(moments[i : i + 1], sample=True, generator=noise))
    return torch.cat(drawn)


def describe_codec(codec: LatentCodec) -> dict[str, str | int | None]:
    """What the protocol says of the codec."""
    return {
        "model": codec.source.name,
        "codec": f"f{codec.factor}, {codec.latent_channels} numbers a position",
        "step": codec.source.step,
        "weights": codec.source.weights or "as exported",
        "weights_sha256": codec.weights_hash,
        "precision": codec.precision,
        "float32": EXACT,  # in codec and metrics: `measure_batches` and `run_finite` see to it
    }
