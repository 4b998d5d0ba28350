"""Batches of decoded images. Each worker reads its share of every step; here the shares are put together in order."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import active_children
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_serializer
from torch.utils.data import DataLoader

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.pixels import EXTENSIONS, PixelArray, unit_levels
from ldm_vae.data.shards.index import Index, Place, SourceConfig
from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.stream.awaited import Awaited
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.budget import Budget
from ldm_vae.data.stream.ranges import UnitRangeWatch
from ldm_vae.data.stream.shared_memory import PREFETCHED, dead_worker
from ldm_vae.data.stream.signals import outlive_signals
from ldm_vae.data.stream.steps import RankSteps, TrainingOrder, ValidationOrder
from ldm_vae.data.stream.worker import DecodedSample, Fault, Share, Shares
from ldm_vae.errors import UserError, in_one_line
from ldm_vae.recipe import Config
from ldm_vae.waiting import cores_of_process

MOST_WORKERS = 8  # that are started where a recipe doesn't say how many; each holds a process's memory
_abandoned: list[object] = []  # streams that the end of the process ends


def _sources(train: Any) -> Any:
    """Turns the short form of data.train, a string, into the long one, a tuple of sources."""
    return ({"shards": train},) if isinstance(train, str) else tuple(train) if isinstance(train, list) else train


class DataConfig(Config):
    """The images: where they lie, how many make a step, and how they are prepared."""

    train: Annotated[
        tuple[SourceConfig, ...],
        BeforeValidator(_sources, json_schema_input_type=str | tuple[SourceConfig, ...]),
        Field(min_length=1),
    ]
    """What to train on: one folder, glob, brace pattern or URL of shards, or folder of images; or a list of sources,
    which are mixed."""

    validation: Place | None = None
    """Folder, glob, brace pattern or URL of shards, or folder of images, to validate on; null: no validation."""

    batch: Annotated[int, Field(gt=0)]
    """Images per optimizer step, over all ranks and micro-batches."""

    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes per rank that read and decode images; 0 reads in the trainer itself. null: as many as the cores of this
    machine allow, which is one less than the cores for each rank, from 1 to 8. Batches don't depend on it."""

    image: ImageConfig = ImageConfig()
    """How an image is prepared: resize, crop, flip."""

    broken_budget: Annotated[int, Field(ge=0)] = 100
    """Number of different broken samples, over all ranks, that a run takes; one more stops it."""

    broken_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the training images of each source, 0 to 1, that may be broken; more stop the run. One always may."""

    @property
    def worker_count(self) -> int:
        """`workers`, or as many as the cores allow: the trainer itself keeps one of those that each rank has."""
        if self.workers is not None:
            return self.workers
        return min(MOST_WORKERS, max(1, cores_of_process() - 1))

    @field_serializer("train")
    def _plain_source(self, train: tuple[SourceConfig, ...]) -> str | list[SourceConfig]:
        """A single source without options is written as it was read."""
        return train[0].shards if train == (SourceConfig(shards=train[0].shards),) else list(train)


def train_batches(
    config: DataConfig, index: Index, seed: int, *, start_step: int, rank: int, world: int, accumulation: int
) -> TrainBatches:
    """This rank's batches from `start_step` on, without end. Raises UserError if the batch does not divide evenly."""
    if config.batch % (world * accumulation):
        what = f"data.batch {config.batch} is not divisible by {world} ranks x {accumulation} micro-batches"
        raise UserError(what, "choose a multiple: it is the number of images per step over all of them")
    _say_unused_labels(index)
    order = TrainingOrder(index, seed, config.batch)
    steps = RankSteps(order, rank, world, per_step=config.batch // world, first=start_step, stop=None)
    return TrainBatches(config, index, steps, accumulation)


def _say_unused_labels(index: Index) -> None:
    """Warns, once, of labels that are not used because some samples have none."""
    lacking = index.samples - index.fields.get(LABEL, 0)
    if not 0 < lacking < index.samples:
        return
    for shard in index.shards:
        there = shard.members[LABEL][:, 0] >= 0 if LABEL in shard.members else np.zeros(shard.samples, dtype=bool)
        if not there.all():
            example = f"{shard.url} {shard.key(int(np.argmin(there)))}"
            warn_once(f"labels are not used: {lacking} of {index.samples} samples have no {LABEL}, such as {example}")
            return


def validation_batches(config: DataConfig, index: Index, *, batch: int, rank: int, world: int) -> ValidationBatches:
    """Every image once over all ranks, in the order of the index, `batch` at a time on each rank.

    Ranks may get different numbers of batches, or none. Images of different sizes come in batches of their own.
    """
    stop = len(range(rank, index.samples, world))
    steps = RankSteps(ValidationOrder(index), rank, world, per_step=batch, first=0, stop=stop)
    return ValidationBatches(config, index, steps)


def measured_batches(
    index: Index, shards: str, image: ImageConfig, *, batch: int, device: torch.device, rank: int, world: int
) -> ValidationBatches:
    """`validation_batches` over all images of `shards`, for networks on `device`. Any number of them may be broken."""
    config = DataConfig(
        train=(SourceConfig(shards=shards),),
        batch=batch,
        workers=0 if device.type == "cpu" else None,  # the CPU is busy with the networks
        image=image,
        broken_budget=index.samples,
    )
    return validation_batches(config, index, batch=batch, rank=rank, world=world)


class _Stream:
    """Iterates over steps of decoded samples, put together from the shares of the workers.

    faults: broken samples that were met and that the caller has not taken from this list yet.
    reads: byte ranges read so far.
    budget: how many broken samples it takes.
    """

    def __init__(self, config: DataConfig, index: Index, steps: RankSteps, budget: Budget) -> None:
        if not any(field in EXTENSIONS for field in index.fields):
            what = f"no pictures in {index.shards[0].url} and the others: their fields are {sorted(index.fields)}"
            raise UserError(what, f"pictures are members that end in {', '.join(EXTENSIONS)}")
        self.faults: list[Fault] = []
        self.reads = 0
        self.budget = budget
        self._watch = UnitRangeWatch(index)
        self._broken: dict[tuple[str, str], Fault] = {}
        workers = config.worker_count
        self._workers = max(workers, 1)
        loader = DataLoader(
            Shares(config.image, index, steps),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # its base seed must not be drawn from the global generator
        )
        others = set(active_children())
        self._shares = _start(loader)
        self._processes = set(active_children()) - others
        self._coming = Awaited(self._receive)

    def close(self) -> None:
        """Stops the workers."""
        self._shares = iter(())

    def abandon(self) -> None:
        """Leaves the workers to the end of the process, which ends them at once: to close waits for what they read."""
        _abandoned.append(self._shares)

    def arrived(self, seconds: float) -> bool:
        """Waits at most so long for the next step. True once the next item, or the end, takes no more waiting."""
        return self._coming.arrived(seconds)

    def _receive(self) -> list[Share]:
        """The shares of the next step, one of each worker; none after the last step."""
        try:
            return list(itertools.islice(self._shares, self._workers))
        except (RuntimeError, OSError, EOFError) as error:
            if not self._processes:
                raise
            raise dead_worker(self._processes, error) from error

    def _next_step(self) -> list[tuple[DecodedSample, PixelArray]]:
        """The samples of the next step, in the order of their positions. Raises StopIteration after the last step."""
        found: list[tuple[DecodedSample, PixelArray]] = []
        shares = self._coming.take()
        if not shares:
            raise StopIteration
        for share in shares:
            self.reads += share.reads
            self._note(share.faults)
            if share.failure is not None:
                raise UserError(*share.failure)
            if share.faults:
                self.budget.check(self._broken.values())
            self._watch.add((sample.key, sample.lowest) for sample in share.samples)
            found += share.images()
        return sorted(found, key=lambda pair: pair[0].position)

    def _note(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            if (fault.url, fault.key) not in self._broken:
                self._broken[fault.url, fault.key] = fault
                self.faults.append(fault)


class TrainBatches(_Stream):
    """Iterates over optimizer steps; each gives the micro-batches of this rank."""

    def __init__(self, config: DataConfig, index: Index, steps: RankSteps, accumulation: int) -> None:
        super().__init__(config, index, steps, Budget(index, config.broken_budget, config.broken_share))
        self._micro = steps.per_step // accumulation

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> list[Batch]:
        samples = self._next_step()
        return [_collate(samples[i : i + self._micro]) for i in range(0, len(samples), self._micro)]


class ValidationBatches(_Stream):
    """Iterates over batches; images of different sizes come in batches of their own."""

    def __init__(self, config: DataConfig, index: Index, steps: RankSteps) -> None:
        super().__init__(config, index, steps, Budget(index, config.broken_budget, share=1.0))
        self._ready: list[Batch] = []

    def __iter__(self) -> ValidationBatches:
        return self

    def arrived(self, seconds: float) -> bool:
        return bool(self._ready) or super().arrived(seconds)

    def __next__(self) -> Batch:
        while not self._ready:
            by_shape = itertools.groupby(self._next_step(), key=lambda pair: pair[0].shape)
            self._ready = [_collate(list(group)) for _, group in by_shape]
        return self._ready.pop(0)


def _start(loader: DataLoader[Any]) -> Iterator[Share]:
    """The iterator of a loader, whose workers have been started. Raises UserError where they cannot be.

    When a worker dies, torch would raise an error in the main thread, wherever that is, and so perhaps where it saves.
    We are told when we ask for what the worker has not sent.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        shares = iter(loader)
    except OSError as error:
        remedy = "give the job more processes, open files or shared memory, or set data.workers=0"
        raise UserError(f"the data workers cannot be started ({in_one_line(error)})", remedy) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
    return shares


def _collate(samples: list[tuple[DecodedSample, PixelArray]]) -> Batch:
    """One batch of samples. numpy makes it, since torch would wake all its threads for each of these small images."""
    shapes = {sample.shape for sample, _ in samples}
    if len(shapes) > 1:
        what = f"images of different sizes in a batch: {' and '.join(str(shape) for shape in sorted(shapes)[:2])}"
        raise UserError(what, "set data.image.crop (and data.image.resize, which enlarges small ones)")
    labels = [sample.label for sample, _ in samples if sample.label is not None]
    images = np.empty((len(samples), *samples[0][0].shape), np.float32)
    for place, (sample, image) in zip(images, samples, strict=True):
        if sample.levels:
            unit_levels(image, out=place)
        else:
            place[:] = image
    return Batch(
        image=torch.from_numpy(images),
        label=torch.tensor(labels, dtype=torch.int64) if labels else None,
        key=[sample.key for sample, _ in samples],
        slot=torch.tensor([sample.slot for sample, _ in samples], dtype=torch.int64),
    )
