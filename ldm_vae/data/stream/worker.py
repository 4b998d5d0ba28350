"""What one worker does: positions -> decoded samples, its share of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.fit import ImageConfig, fit_image
from ldm_vae.data.images.pixels import Array, BrokenImage
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.shard import LABEL, BrokenSample, Fields, parse_label
from ldm_vae.data.shards.storage import Unreachable
from ldm_vae.data.stream.fetch import Fetcher
from ldm_vae.data.stream.order import Positions, SampleRef
from ldm_vae.data.stream.steps import Steps
from ldm_vae.errors import UserError

TRIES = 100  # samples tried for one slot before the data count as broken


@dataclass(frozen=True)
class Fault:
    """A sample that was replaced (training) or left out (validation).   url: of its shard."""

    url: str
    key: str
    reason: str


@dataclass(frozen=True)
class Sample:
    position: int
    slot: int
    key: str
    label: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """What a worker made of its part of a step. pixels: all images end to end, one tensor for one file descriptor.
    reads: since the last share.   failure: (what, remedy) that ends the run."""

    samples: list[Sample]
    pixels: Tensor
    faults: list[Fault]
    reads: int
    failure: tuple[str, str] | None


class Shares(IterableDataset[Share]):
    def __init__(self, image: ImageConfig, index: Index, steps: Steps) -> None:
        self.image = image
        self.index = index
        self.steps = steps

    def __iter__(self) -> Iterator[Share]:
        info = get_worker_info()
        reader = _Reader(self.image, self.index, self.steps, *((0, 1) if info is None else (info.id, info.num_workers)))
        for positions in self.steps:
            share = reader.share(positions)
            yield share
            if share.failure is not None:
                return


class _Reader:
    """One worker: positions -> decoded samples."""

    def __init__(self, image: ImageConfig, index: Index, steps: Steps, worker: int, workers: int) -> None:
        self.image, self.index, self.steps, self.order = image, index, steps, steps.order
        self.worker, self.workers = worker, workers
        self.fetcher = Fetcher(index)
        self.faults: list[Fault] = []
        self.reads_told = 0

    def share(self, positions: Positions) -> Share:
        mine = self.steps.of_worker(positions, self.worker, self.workers)
        samples: list[Sample] = []
        images: list[Array] = []
        failure = None
        try:
            for position, ref in zip(mine.tolist(), self.order.refs(mine), strict=True):
                found = self._sample(position, ref)
                if found is not None:
                    samples.append(found[0])
                    images.append(found[1])
        except Unreachable as error:
            failure = (str(error), "the source stayed away; run it again to go on from the last checkpoint")
        except UserError as error:  # as data: DataLoader cannot rebuild it from its text
            failure = (error.what, error.remedy)
        pixels = np.concatenate([image.ravel() for image in images]) if images else np.empty(0, dtype=np.float32)
        faults, self.faults = self.faults, []
        reads, self.reads_told = self.fetcher.source.reads - self.reads_told, self.fetcher.source.reads
        return Share(samples, torch.from_numpy(pixels), faults, reads, failure)

    def _sample(self, position: int, ref: SampleRef) -> tuple[Sample, Array] | None:
        """The sample of this position, or what replaces it; None to leave it out."""
        chosen: SampleRef | None = ref
        coming: Callable[[], list[SampleRef]] = partial(self._coming, position)
        for attempt in range(TRIES):
            if chosen is None:
                return None
            try:
                label, image = self._decode(self.fetcher.get(chosen, coming), position)
                key = self.index.shards[chosen.shard].key(chosen.ordinal)
                return Sample(position, self.order.slot(position), key, label, image.shape), image
            except (BrokenSample, BrokenImage) as error:
                shard = self.index.shards[chosen.shard]
                self.faults.append(Fault(shard.url, shard.key(chosen.ordinal), error.reason))
                chosen, coming = self.order.replacement(position, attempt, chosen), list  # a replacement comes alone
        last = self.faults[-1]
        what = f"{TRIES} samples in a row are broken, the last {last.url} {last.key} ({last.reason})"
        raise UserError(what, "check the shards and data.image")

    def _decode(self, fields: Fields, position: int) -> tuple[int | None, Array]:
        label = parse_label(fields.pop(LABEL)) if LABEL in fields else None
        ((extension, data),) = fields.items()
        image = decode_image(data, extension, self.image.channels)
        return label, fit_image(image, self.image, self.order.generator(position))

    def _coming(self, position: int) -> list[SampleRef]:
        window = self.order.window(position, self.steps.world * self.workers)
        return self.order.refs(self.steps.of_worker(window, self.worker, self.workers))
