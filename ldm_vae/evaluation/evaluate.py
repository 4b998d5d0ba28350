"""A codec and images -> numbers, with the protocol they were taken under.

Published numbers for one autoencoder differ by 2 dB, because resize, crop, rounding and sampling differ. So the
protocol is part of the result: reconstruction from the posterior's mode, or a sample where asked for, clamped and
rounded to 8 bits like the original, at the original size, means over images.

On several processes each measures its own images, and rows and features are gathered; the same images give the same
numbers in any order.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec, NonFiniteError
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import measured_batches
from ldm_vae.errors import UserError
from ldm_vae.evaluation.results import BROKEN, EvaluationProtocol, NoImageError, Results, summarize
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.sets import FeatureSets, SetMetrics
from ldm_vae.ranks import all_gather, rank_and_world

logger = logging.getLogger(__name__)


class Codec(Protocol):
    """What can be evaluated: `LatentCodec`, or any other way from images to fewer numbers and back."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], any size -> latents, nothing in them drawn at random."""

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Latents -> (B, C, H, W), unclamped.   size: (H, W) of the images."""


class Metrics:
    """Every metric of a protocol with its networks, ready for codec after codec. All processes must make one."""

    def __init__(
        self, protocol: EvaluationProtocol, device: torch.device | str, *, inception_file: Path | None = None
    ) -> None:
        """inception_file: the weights of FID's network; None: looked for as ldm_vae.pretrained.inception says."""
        self.image = ImageMetrics(protocol.image_metrics, device)
        lpips = self.image.metrics.get("lpips_vgg")
        self.sets = SetMetrics(
            protocol.set_metrics, device, vgg=lpips.network if lpips else None, inception_file=inception_file
        )


def evaluate(
    codec: Codec,
    batches: Iterable[Batch],
    protocol: EvaluationProtocol | None = None,
    *,
    metrics: Metrics | None = None,
) -> Results:
    """Encode, decode and measure every image. Memory is that of one batch.

    batches: this process's share of the images, as `protocol` wants them, of one size within a batch.
    metrics: those of `protocol`, if made already.
    Returns what was measured on all processes, all of which must call this. Raises NoImageError where there is none.
    """
    protocol = protocol or EvaluationProtocol()
    metrics = metrics or Metrics(protocol, codec.device)
    if protocol.latent == "sample" and not isinstance(codec, LatentCodec):
        raise UserError("this codec has no posterior to sample", "evaluate it with the latent `mode`")
    features = FeatureSets(metrics.sets)
    sample = protocol.seed if protocol.latent == "sample" else None
    mine = measure(codec, batches, metrics.image, features, sample=sample)
    rows = [row for part in all_gather(mine) for row in part]
    return summarize(rows, protocol, metrics.image, features)


def evaluate_shards(
    codec: Codec,
    shards: str,
    protocol: EvaluationProtocol | None = None,
    *,
    batch: int = 8,
    metrics: Metrics | None = None,
    done: Callable[[int, int], None] = lambda images, total: None,
) -> Results:
    """`evaluate` on every image of some shards, shared out to the processes; the same results on each.

    shards: folder, glob, brace pattern or URL.   batch: images at once on each process, where equal in size.
    done(images, total): called for every batch with what this process has done of its share.
    Broken images are left out, with a warning that counts them; the protocol counts them, too.
    """
    protocol = protocol or EvaluationProtocol()
    index = load_index(shards)
    rank, world = rank_and_world()
    stream = measured_batches(index, shards, protocol.image, batch=batch, device=codec.device, rank=rank, world=world)

    def counted() -> Iterator[Batch]:
        for found in stream:
            yield found
            done(len(found.key), len(range(rank, index.samples, world)))

    try:
        results: Results | None = evaluate(codec, counted(), protocol, metrics=metrics)
    except NoImageError:
        results = None
    faults = [fault for found in all_gather(stream.faults) for fault in found]
    broken = (
        f"{len(faults)} of {index.samples} images, the first {faults[0].key} ({faults[0].reason})" if faults else ""
    )
    if results is None:
        raise UserError(f"{shards} has no image for this codec and protocol", f"broken are {broken}")
    if faults and rank == 0:
        logger.warning("left out %s", broken)
    return replace(results, protocol={"shards": shards, "left_out": len(faults), **results.protocol})


def measure(
    codec: Codec,
    batches: Iterable[Batch],
    metrics: ImageMetrics,
    features: FeatureSets | None = None,
    *,
    sample: int | None = None,
) -> list[MeasuredImage]:
    """The rows of this process's images; their features go into `features`.

    sample: the seed of posterior samples to decode, of a LatentCodec; None: the mode.
    """
    rows = []
    for batch in batches:
        image = batch.image.to(codec.device)
        whole, reconstruction = _reconstruct(codec, image, batch.key, sample)
        if whole:
            ours, theirs = to_uint8(reconstruction), to_uint8(image[whole])
            measured = metrics(ours, theirs, [batch.key[i] for i in whole])
            if features is not None:
                features.add(ours, theirs, measured)
            rows += measured
        for i in sorted(set(range(len(image))) - set(whole)):
            row = metrics.without_reconstruction(image[i], batch.key[i], BROKEN)
            if features is not None:
                features.without_reconstruction(row, BROKEN)
            rows.append(row)
    return rows


def _reconstruct(codec: Codec, image: Tensor, keys: Sequence[str], sample: int | None) -> tuple[list[int], Tensor]:
    """The places in the batch of the images that have a finite reconstruction, and those reconstructions."""
    places = list(range(len(image)))
    size = (image.shape[2], image.shape[3])
    while places:
        try:
            if sample is None:
                reconstruction = codec.decode(codec.encode(image[places]), size=size)
            else:
                assert isinstance(codec, LatentCodec)
                z = _draw(codec, image[places], [keys[place] for place in places], sample)
                reconstruction = codec.decode_raw(z, size=size)
        except NonFiniteError as error:
            places = [place for i, place in enumerate(places) if i not in error.samples]
            continue
        if reconstruction.shape[1] != image.shape[1]:  # torch would stretch one to the other, without a word
            what = f"a codec from {image.shape[1]} to {reconstruction.shape[1]} channels"
            raise UserError(what, "only one that gives back its own image can be measured")
        finite = reconstruction.isfinite().flatten(1).all(dim=1).tolist()
        return list(compress(places, finite)), reconstruction[finite]
    return [], image[:0]


def _draw(codec: LatentCodec, images: Tensor, keys: Sequence[str], seed: int) -> Tensor:
    """(B, C, H, W) -> (B, c, h, w), raw samples of the posterior; the noise of an image depends on seed and key alone,
    so neither batches nor processes change it."""
    moments = codec.moments(images)
    drawn = []
    for i, key in enumerate(keys):
        number = int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big", signed=True)
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
    }
