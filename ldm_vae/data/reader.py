"""Order -> decoded batches. Each worker reads its share of every step; the shares are put together in order here.

Sample number c of a rank stands at position c * world + rank, and worker c % workers reads it: with 64 lanes and
powers of two, every worker has lanes of its own. What a batch holds depends on neither, and nothing is split by shard,
so that any shards go with any ranks and workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_serializer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm_vae.data.batch import Batch, rng
from ldm_vae.data.fetch import LABEL, BrokenSample, Fetcher, Fields
from ldm_vae.data.images import EXTENSIONS, Array, BrokenImage, ImageConfig, decode_image, fit_image
from ldm_vae.data.index import Index, SourceConfig
from ldm_vae.data.order import WINDOW, Positions, SampleRef, refs_at, rest_of_window
from ldm_vae.data.source import Unreachable
from ldm_vae.data.workers import outlive_signals
from ldm_vae.errors import UserError
from ldm_vae.recipe import Config

TRIES = 100  # samples tried for one slot before the data count as broken
LISTED = 10  # broken samples named in the message that stops a run


def _sources(train: Any) -> Any:
    """The shorter form of data.train, a string."""
    return ({"shards": train},) if isinstance(train, str) else tuple(train) if isinstance(train, list) else train


class DataConfig(Config):
    train: Annotated[tuple[SourceConfig, ...], BeforeValidator(_sources), Field(min_length=1)]
    # ^ what to train on: folder, glob, brace pattern or URL of shards, folder of images; or a list of sources, mixed
    validation: str | None = None  # shards to validate on
    batch: Annotated[int, Field(gt=0)]  # images per optimizer step, over all ranks and accumulation
    workers: Annotated[int, Field(ge=0)] = 2  # processes per rank that read and decode; 0 reads in the trainer itself
    image: ImageConfig = ImageConfig()
    broken_budget: Annotated[int, Field(ge=0)] = 100  # different broken samples per rank before the run stops

    @field_serializer("train")
    def _plain_source(self, train: tuple[SourceConfig, ...]) -> str | list[SourceConfig]:
        """A single source without options is written as it was read."""
        return train[0].shards if train == (SourceConfig(shards=train[0].shards),) else list(train)


@dataclass(frozen=True)
class Fault:
    """A sample that was replaced (training) or left out (validation).   url: of its shard."""

    url: str
    key: str
    reason: str


def train_batches(
    config: DataConfig, index: Index, seed: int, *, start_step: int, rank: int, world: int, accumulation: int
) -> TrainBatches:
    """This rank's batches from `start_step` on, without end. Raises UserError where they cannot be cut evenly."""
    if config.batch % (world * accumulation):
        what = f"data.batch {config.batch} is not divisible by {world} ranks x {accumulation} micro-batches"
        raise UserError(what, "choose a multiple: it is the number of images per step over all of them")
    order = _TrainingOrder(index, seed, config.batch)
    steps = _Steps(order, rank, world, per_step=config.batch // world, first=start_step, stop=None)
    return TrainBatches(config, index, steps, accumulation)


def validation_batches(config: DataConfig, index: Index, *, batch: int, rank: int, world: int) -> ValidationBatches:
    """Every image once over all ranks, in the order of the index, `batch` at a time on each rank.

    Ranks may get different numbers of batches, or none. Images of different sizes come in batches of their own.
    """
    stop = len(range(rank, index.samples, world))
    steps = _Steps(_ValidationOrder(index), rank, world, per_step=batch, first=0, stop=stop)
    return ValidationBatches(config, index, steps)


class _Order(Protocol):
    """Positions -> samples, and what is drawn for them."""

    def refs(self, positions: Positions) -> list[SampleRef]: ...
    def window(self, position: int, stride: int) -> Positions:
        """The positions from this one on that are worth reading together; stride: between those of one reader."""

    def slot(self, position: int) -> int: ...
    def generator(self, position: int) -> np.random.Generator | None:
        """For crop and flip; None for the centre and no flip."""

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> SampleRef | None:
        """What takes the place of a broken sample; None to leave it out."""


@dataclass(frozen=True)
class _TrainingOrder:
    index: Index
    seed: int
    batch: int

    def refs(self, positions: Positions) -> list[SampleRef]:
        return refs_at(self.index, self.seed, positions)

    def window(self, position: int, stride: int) -> Positions:
        return rest_of_window(self.index, self.seed, position)

    def slot(self, position: int) -> int:
        return position % self.batch

    def generator(self, position: int) -> np.random.Generator:
        return rng(self.seed, "augment", *divmod(position, self.batch))

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> SampleRef:
        """Any sample of the same source."""
        first, count = self.index.range_of_part(broken.shard)
        number = first + int(rng(self.seed, "replacement", position, attempt).integers(count))
        return SampleRef(*self.index.locate(number), epoch=broken.epoch)


@dataclass(frozen=True)
class _ValidationOrder:
    index: Index

    def refs(self, positions: Positions) -> list[SampleRef]:
        return [SampleRef(*self.index.locate(position), epoch=0) for position in positions.tolist()]

    def window(self, position: int, stride: int) -> Positions:
        return np.arange(position, min(position + WINDOW * stride, self.index.samples), stride, dtype=np.int64)

    def slot(self, position: int) -> int:
        return position

    def generator(self, position: int) -> None:
        return None

    def replacement(self, position: int, attempt: int, broken: SampleRef) -> None:
        return None


@dataclass(frozen=True)
class _Steps:
    """Which positions a rank reads at which step. stop: samples of this rank, None without end."""

    order: _Order
    rank: int
    world: int
    per_step: int  # samples
    first: int  # step
    stop: int | None

    def __iter__(self) -> Iterator[Positions]:
        for step in itertools.count(self.first):
            start, end = step * self.per_step, (step + 1) * self.per_step
            numbers = np.arange(start, end if self.stop is None else min(end, self.stop), dtype=np.int64)
            if not len(numbers):
                return
            yield numbers * self.world + self.rank

    def of_worker(self, positions: Positions, worker: int, workers: int) -> Positions:
        """Those of any positions that this rank's worker reads."""
        numbers, remainder = np.divmod(positions - self.rank, self.world)
        return positions[(remainder == 0) & (numbers % workers == worker)]


@dataclass(frozen=True)
class _Sample:
    position: int
    slot: int
    key: str
    label: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Share:
    """What a worker made of its part of a step. pixels: all images end to end, one tensor for one file descriptor.
    reads: since the last share.   failure: (what, remedy) that ends the run."""

    samples: list[_Sample]
    pixels: Tensor
    faults: list[Fault]
    reads: int
    failure: tuple[str, str] | None


class _Shares(IterableDataset[_Share]):
    def __init__(self, config: DataConfig, index: Index, steps: _Steps) -> None:
        self.image = config.image
        self.index = index
        self.steps = steps

    def __iter__(self) -> Iterator[_Share]:
        info = get_worker_info()
        reader = _Reader(self.image, self.index, self.steps, *((0, 1) if info is None else (info.id, info.num_workers)))
        for positions in self.steps:
            share = reader.share(positions)
            yield share
            if share.failure is not None:
                return


class _Reader:
    """One worker: positions -> decoded samples."""

    def __init__(self, image: ImageConfig, index: Index, steps: _Steps, worker: int, workers: int) -> None:
        self.image, self.index, self.steps, self.order = image, index, steps, steps.order
        self.worker, self.workers = worker, workers
        self.fetcher = Fetcher(index)
        self.faults: list[Fault] = []
        self.reads_told = 0

    def share(self, positions: Positions) -> _Share:
        mine = self.steps.of_worker(positions, self.worker, self.workers)
        samples: list[_Sample] = []
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
        return _Share(samples, torch.from_numpy(pixels), faults, reads, failure)

    def _sample(self, position: int, ref: SampleRef) -> tuple[_Sample, Array] | None:
        """The sample of this position, or what replaces it; None to leave it out."""
        chosen: SampleRef | None = ref
        coming: Callable[[], list[SampleRef]] = partial(self._coming, position)
        for attempt in range(TRIES):
            if chosen is None:
                return None
            try:
                label, image = self._decode(self.fetcher.get(chosen, coming), position)
                key = self.index.shards[chosen.shard].key(chosen.ordinal)
                return _Sample(position, self.order.slot(position), key, label, image.shape), image
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


def parse_label(data: bytes) -> int:
    try:
        label = int(data[:32])
    except ValueError:
        raise BrokenSample(f"{LABEL} is no integer: {data[:32]!r}") from None
    if len(data) > 32 or not -(2**63) <= label < 2**63:
        raise BrokenSample(f"{LABEL} is no integer of 64 bits: {data[:32]!r}")
    return label


class _Stream:
    """Steps of decoded samples. faults: new ones, until the caller takes them away.   reads: ranges read so far."""

    def __init__(self, config: DataConfig, index: Index, steps: _Steps) -> None:
        if not any(field in EXTENSIONS for field in index.fields):
            what = f"no pictures in {index.shards[0].url} and the others: their fields are {sorted(index.fields)}"
            raise UserError(what, f"pictures are members that end in {', '.join(EXTENSIONS)}")
        self.faults: list[Fault] = []
        self.reads = 0
        self._budget = config.broken_budget
        self._broken: dict[tuple[str, str], Fault] = {}
        self._workers = max(config.workers, 1)
        loader = DataLoader(
            _Shares(config, index, steps),
            batch_size=None,
            num_workers=config.workers,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # its base seed must not be drawn from the global generator
        )
        self._shares: Iterator[_Share] = iter(loader)

    def close(self) -> None:
        """Ends the workers."""
        self._shares = iter(())

    def _next_step(self) -> list[tuple[_Sample, Tensor]]:
        """The samples of a step in the order of their positions. Raises StopIteration; UserError to end the run."""
        found: list[tuple[_Sample, Tensor]] = []
        first = next(self._shares)
        for share in itertools.chain([first], itertools.islice(self._shares, self._workers - 1)):
            self.reads += share.reads
            self._count(share.faults)
            if share.failure is not None:
                raise UserError(*share.failure)
            sizes = [int(np.prod(sample.shape)) for sample in share.samples]
            images = torch.split(share.pixels, sizes)
            found += [(s, image.view(s.shape)) for s, image in zip(share.samples, images, strict=True)]
        return sorted(found, key=lambda pair: pair[0].position)

    def _count(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            if (fault.url, fault.key) not in self._broken:
                self._broken[fault.url, fault.key] = fault
                self.faults.append(fault)
        if len(self._broken) > self._budget:
            listed = [f"{fault.url} {fault.key} ({fault.reason})" for fault in self._broken.values()]
            more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
            what = f"{len(listed)} broken samples, {self._budget} are allowed: {', '.join(listed[:LISTED])}{more}"
            raise UserError(what, "mend or remove them, or raise data.broken_budget")


class TrainBatches(_Stream):
    """Iterates over steps; each gives this rank's micro-batches."""

    def __init__(self, config: DataConfig, index: Index, steps: _Steps, accumulation: int) -> None:
        super().__init__(config, index, steps)
        self._micro = steps.per_step // accumulation

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> list[Batch]:
        samples = self._next_step()
        return [_collate(samples[i : i + self._micro]) for i in range(0, len(samples), self._micro)]


class ValidationBatches(_Stream):
    """Iterates over batches."""

    def __init__(self, config: DataConfig, index: Index, steps: _Steps) -> None:
        super().__init__(config, index, steps)
        self._ready: list[Batch] = []

    def __iter__(self) -> ValidationBatches:
        return self

    def __next__(self) -> Batch:
        while not self._ready:
            by_shape = itertools.groupby(self._next_step(), key=lambda pair: pair[0].shape)
            self._ready = [_collate(list(group)) for _, group in by_shape]
        return self._ready.pop(0)


def _collate(samples: list[tuple[_Sample, Tensor]]) -> Batch:
    shapes = {sample.shape for sample, _ in samples}
    if len(shapes) > 1:
        what = f"images of different sizes in a batch: {' and '.join(str(shape) for shape in sorted(shapes)[:2])}"
        raise UserError(what, "set data.image.crop (and data.image.resize, which enlarges small ones)")
    labels = [sample.label for sample, _ in samples if sample.label is not None]
    return Batch(
        image=torch.stack([image for _, image in samples]),
        label=torch.tensor(labels, dtype=torch.int64) if labels else None,
        key=[sample.key for sample, _ in samples],
        slot=torch.tensor([sample.slot for sample, _ in samples], dtype=torch.int64),
    )
