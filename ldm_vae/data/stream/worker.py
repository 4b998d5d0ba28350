"""What one worker of a DataLoader does: it reads and decodes its share of the samples of every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.pixels import BrokenImage, PixelArray
from ldm_vae.data.images.prepare import Prepared, prepare_image
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.shards.shard import BrokenSample, Fields, parse_label
from ldm_vae.data.stream.fetch import Fetcher
from ldm_vae.data.stream.mixture import Positions
from ldm_vae.data.stream.order import SampleRef
from ldm_vae.data.stream.shared_memory import FLOAT_BYTES, Packed, failure_in_worker
from ldm_vae.data.stream.steps import RankSteps
from ldm_vae.errors import UserError
from ldm_vae.machine import fault_of_machine
from ldm_vae.passwords import keep_these, kept_aside

SAMPLE_TRIES = 100  # samples tried for one place in a batch before the whole data set counts as broken


@dataclass(frozen=True)
class Fault:
    """A broken sample, which was replaced (in training) or left out (in validation).

    url: the shard that holds it.
    key: name of the sample.
    reason: what is wrong with it, in one line.
    """

    url: str
    key: str
    reason: str


@dataclass(frozen=True)
class DecodedSample:
    """What is known about a decoded sample; its pixels lie in the `Share` that lists it.

    position: its place in the order of training or validation.
    slot: its place in the global batch.
    key: name of the sample.
    label: its class, if all samples have one.
    shape: (C, H, W) of its image.
    levels: whether its pixels are levels of 8 bits; else they are float32 in [-1, 1].
    lowest: the lowest value of a picture of floats, before it is fitted (see `ranges.py`); None for another one.
    """

    position: int
    slot: int
    key: str
    label: int | None
    shape: tuple[int, ...]
    levels: bool
    lowest: float | None


@dataclass(frozen=True)
class Share:
    """What a worker made of its part of a step.

    samples: the samples that could be read.
    pixels: the bytes of their images end to end, in one tensor, because every tensor that a worker sends takes a file
        descriptor.
    faults: broken samples met on the way.
    reads: byte ranges read since the last share.
    failure: (what, remedy) of the error that ends the run; None if all is well.
    """

    samples: list[DecodedSample]
    pixels: Tensor
    faults: list[Fault]
    reads: int
    failure: tuple[str, str] | None

    def images(self) -> Iterator[tuple[DecodedSample, PixelArray]]:
        """The samples with their pixels, (C, H, W) uint8 or float32, which are views of the one tensor."""
        start, pixels = 0, self.pixels.numpy()
        for sample in self.samples:
            dtype, size = (np.uint8, 1) if sample.levels else (np.float32, FLOAT_BYTES)
            end = start + size * math.prod(sample.shape)
            yield sample, pixels[start:end].view(dtype).reshape(sample.shape)
            start = _aligned(end)


def _joined(images: list[PixelArray]) -> Tensor:
    """The bytes of all images, each from an address on that suits floats."""
    pixels = np.empty(sum(_aligned(image.nbytes) for image in images), np.uint8)
    start = 0
    for image in images:
        pixels[start : start + image.nbytes] = image.reshape(-1).view(np.uint8)
        start += _aligned(image.nbytes)
    return torch.from_numpy(pixels)


def _aligned(size: int) -> int:
    """`size`, rounded up to the bytes of a float."""
    return -(-size // FLOAT_BYTES) * FLOAT_BYTES


class Shares(IterableDataset[Share | Packed]):
    """The data set that a DataLoader iterates over: in each worker, that worker's share of one step after the other.

    A process that is a worker packs its shares, and sends whatever fails in it as the failure of a share.
    """

    def __init__(self, image: ImageConfig, index: Index, steps: RankSteps) -> None:
        self.image = image
        self.index = index
        self.steps = steps
        self.kept_aside = kept_aside()  # for workers that are spawned

    def __iter__(self) -> Iterator[Share | Packed]:
        keep_these(self.kept_aside)
        info = get_worker_info()
        reader = _Reader(self.image, self.index, self.steps, *((0, 1) if info is None else (info.id, info.num_workers)))
        for positions in self.steps:
            if info is None:
                share = reader.share(positions)
                yield share
            else:
                share, packed = _packed(reader, positions)
                yield packed
            if share.failure is not None:
                return


def _packed(reader: _Reader, positions: Positions) -> tuple[Share, Packed]:
    """The share of a worker, or why it has none, and what it sends."""
    try:
        share = reader.share(positions)
        return share, Packed(share)
    except Exception as error:
        share = Share([], _joined([]), [], 0, failure_in_worker(error))
        return share, Packed(share)


class _Reader:
    """Reads and decodes the samples of one worker."""

    def __init__(self, image: ImageConfig, index: Index, steps: RankSteps, worker: int, workers: int) -> None:
        self.image, self.index, self.steps, self.order = image, index, steps, steps.order
        self.worker, self.workers = worker, workers
        self.fetcher = Fetcher(index)
        self.faults: list[Fault] = []
        self.reads_reported = 0

    def share(self, positions: Positions) -> Share:
        mine = self.steps.of_worker(positions, self.worker, self.workers)
        samples: list[DecodedSample] = []
        images: list[PixelArray] = []
        failure = None
        try:
            for position, ref in zip(mine.tolist(), self.order.refs(mine), strict=True):
                found = self._sample(position, ref)
                if found is not None:
                    samples.append(found[0])
                    images.append(found[1])
        except Exception as error:  # passed on as data: DataLoader could not rebuild a UserError from its text
            told = error if isinstance(error, UserError) else fault_of_machine(error)
            if told is None:
                raise
            failure = (told.what, told.remedy)
        faults, self.faults = self.faults, []
        reads, self.reads_reported = self.fetcher.reader.reads - self.reads_reported, self.fetcher.reader.reads
        return Share(samples, _joined(images), faults, reads, failure)

    def _sample(self, position: int, ref: SampleRef) -> tuple[DecodedSample, PixelArray] | None:
        """The sample at a position, or its replacement if it is broken; None if it is left out."""
        chosen: SampleRef | None = ref
        coming: Callable[[], list[SampleRef]] = partial(self._coming, position)
        for attempt in range(SAMPLE_TRIES):
            if chosen is None:
                return None
            try:
                label, image = self._decode(self.fetcher.get(chosen, coming), position)
                key, slot = self.index.shards[chosen.shard].key(chosen.ordinal), self.order.slot(position)
                shape, levels = image.pixels.shape, image.pixels.dtype == np.uint8
                return DecodedSample(position, slot, key, label, shape, levels, image.lowest), image.pixels
            except (BrokenSample, BrokenImage) as error:
                shard = self.index.shards[chosen.shard]
                self.faults.append(Fault(shard.url, shard.key(chosen.ordinal), error.reason))
                chosen = self.order.replacement(position, attempt, chosen)
                coming = list  # nothing is read ahead of a replacement
        last = self.faults[-1]
        what = f"{SAMPLE_TRIES} samples in a row are broken, the last {last.url} {last.key} ({last.reason})"
        raise UserError(what, "check the shards and data.image")

    def _decode(self, fields: Fields, position: int) -> tuple[int | None, Prepared]:
        """(label, image) of a sample."""
        label = parse_label(fields.pop(LABEL)) if LABEL in fields else None
        ((extension, data),) = fields.items()
        return label, prepare_image(data, extension, self.image, self.order.generator(position))

    def _coming(self, position: int) -> list[SampleRef]:
        window = self.order.window(position, self.steps.world * self.workers)
        return self.order.refs(self.steps.of_worker(window, self.worker, self.workers))
