"""The loop of a run: step, log, validate, save; until the last step, a signal, or an error."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import gather_object

from ldm_vae.atomic import append, atomic_file
from ldm_vae.data.shards.index import Index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.budget import listed
from ldm_vae.data.stream.reader import TrainBatches
from ldm_vae.data.stream.worker import Fault
from ldm_vae.devices import peak_memory, total_memory
from ldm_vae.errors import UserError
from ldm_vae.machine import out_of_memory
from ldm_vae.printable import counted
from ldm_vae.transfer import Courier
from ldm_vae.waiting import load
from train.data_wait import DataWait
from train.health import Health
from train.history import History
from train.log import Meter, MetricsLog
from train.memory import remedy
from train.pictures import pictures_for_trackers
from train.preempt import Interrupted, Preempted, Preemption
from train.progress import Progress
from train.recipe import Recipe
from train.snapshot import meta_of, tensors_of
from train.state import Run
from train.step import step_of
from train.together import gather_together
from train.trackers import Trackers
from train.validate import Validation
from train.writer import CheckpointWriter


def due(taken: int, recipe: Recipe) -> bool:
    """Whether a run validates after so many steps."""
    return taken == recipe.steps or taken % recipe.validation.every == 0


class Loop:
    """Runs the steps. Row, checkpoint and picture n show the state after n steps."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        batches: TrainBatches,
        index: Index,
        validation: Validation | None,
        meter: Meter,
        health: Health,
        trackers: Trackers,
        preemption: Preemption,
        start: int,
        validate_first: bool,
    ) -> None:
        """
        index: index of the training data.
        start: number of optimizer steps already taken.
        validate_first: whether the validation after these steps is still to be done.
        """
        self.run, self.recipe, self.batches, self.validation = run, recipe, batches, validation
        self.index, self.meter, self.health, self.trackers = index, meter, health, trackers
        self.preemption, self.start = preemption, start
        self.validate_first = validate_first and validation is not None
        self.folder = Path(recipe.output)
        self.accelerator = run.accelerator
        self.log = MetricsLog(self.folder, run.accelerator)
        self.writer = CheckpointWriter(self.folder, recipe.checkpoint)  # used by the main process
        self.train_step = step_of(recipe)
        self.courier, self.data_wait = Courier(run.accelerator.device), DataWait(run.accelerator.device)
        self.taken = start  # optimizer steps
        self.saved = start  # of the newest checkpoint; before the first step there is nothing to save
        self.last_row = (time.perf_counter(), start)  # time and step from which the speed is measured
        self.validated: dict[int, dict[str, float]] = {}  # the latest validation, by its step
        self.new_faults: list[Fault] = []  # samples replaced on this rank since the last row
        self.broken: dict[tuple[str, str], Fault] = {}  # samples replaced on any rank, by shard and key

    def run_to_end(self) -> None:
        """Takes all remaining steps. Raises Preempted after a signal, UserError where the run cannot continue."""
        self.preemption.hold()
        self.log.cut(self.start)
        names = () if self.validation is None else self.validation.names
        self.history = History(names, self.log.validations())
        self.progress = Progress(self.accelerator, self.recipe.steps, self.start, self.recipe.data.batch)
        try:
            with self.progress, self.writer:
                try:
                    self.run_steps()
                    self.conclude_saving()
                except Interrupted:
                    self.stop()
        except BaseException:
            with suppress(UserError, OSError):  # the user is to read what ended the run
                self.write_broken()
            raise
        self.write_broken()
        if best := self.history.best_line():
            self.progress.say(best)

    def run_steps(self) -> None:
        """Raises Interrupted, on all ranks, where one of them has got a signal."""
        recipe = self.recipe
        if self.validate_first:
            self.validate()
            self.save()  # again, with what was measured
        for step in range(self.start, recipe.steps):
            self.writer.check()
            with self.data_wait.measured():
                self.preemption.wait_for(self.data_wait.watched(self.batches.arrived))
                micro_batches = [batch.by(self.courier, self.run.dtype) for batch in next(self.batches)]
            self.take_step(micro_batches, step)
            self.taken = step + 1
            self.progress.advance()
            last = self.taken == recipe.steps
            if last or self.taken % recipe.log.every == 0:
                self.write_row()
            if self.validation is not None and due(self.taken, recipe):
                self.validate()
            if last or self.taken % recipe.checkpoint.every == 0:
                self.save()

    def take_step(self, micro_batches: list[Batch], step: int) -> None:
        """Takes a step. Raises UserError where it does not fit into memory; all steps before it are saved then."""
        try:
            self.meter.add(self.train_step(self.run, micro_batches, step))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the activations
        else:
            self.data_wait.started()
            return
        batch, world = micro_batches[0].image, self.accelerator.num_processes
        images, size = len(batch), (batch.shape[2], batch.shape[3])
        if all(update.begun < step for update in self.run.updates.values()):
            self.run.drop_step()
            self.save_alone()
        raise UserError(
            f"out of memory on {self.accelerator.device} in step {step}, of {counted(images, 'image')} of "
            f"{size[0]} x {size[1]} at once",
            remedy(self.recipe, size, world, total_memory(self.accelerator.device)),
        )

    def stop(self) -> None:
        """Saves what no checkpoint holds yet, and raises Preempted."""
        self.batches.abandon()
        if self.saved < self.taken:
            self.save()
        self.conclude_saving()
        self.accelerator.state.destroy_process_group()  # else a thread of gloo may abort the process at its end
        raise Preempted(f"{self.preemption.reason} at step {self.taken}")

    def write_row(self) -> None:
        """Writes a row of metrics.jsonl. Here the host waits for the device, and reads what is counted on it."""
        taken = self.taken
        faults = self.take_faults()
        told = gather_together({"meter": self.meter.local(), "broken": torch.tensor([len(faults)])}, self.accelerator)
        row = self.meter.means(told["meter"])
        row |= {f"learning_rate/{name}": update.lr(taken - 1) for name, update in self.run.updates.items()}
        row["epoch"] = taken * self.recipe.data.batch / self.index.samples
        row["skipped_steps"] = int(self.run.guard.skipped)
        row["time/broken_samples"] = self.count_broken(faults, int(told["broken"].sum()))
        row["time/broken_share"] = len(self.broken) / self.index.samples
        now, (then, before) = time.perf_counter(), self.last_row
        row["time/images_per_second"] = (taken - before) * self.recipe.data.batch / (now - then)
        row["time/data"] = self.data_wait.take() / (now - then)
        if self.accelerator.device.type == "cpu":
            ours = self.accelerator.num_processes * (torch.get_num_threads() + self.recipe.data.worker_count)
            row["time/load_of_others"] = max(0.0, load(minutes=5) - ours)
        if (peak := peak_memory(self.accelerator.device)) is not None:
            row["time/peak_gigabytes"] = peak / 2**30
        self.last_row = (now, taken)
        self.record(row, self.health.judge(taken, row))
        self.progress.show(taken, row)
        self.stop_if_never_finite()

    def record(self, row: Mapping[str, float], warnings: Sequence[str]) -> None:
        """Writes a row and the warnings about it, for people and for trackers."""
        self.log.warn(self.taken, warnings)
        self.log.write(self.taken, row)
        self.trackers.log(self.taken, row)
        self.trackers.warn(self.taken, warnings)

    def take_faults(self) -> list[Fault]:
        """The samples that this rank has replaced since the last row; they are in broken.jsonl then."""
        self.write_broken()
        faults, self.new_faults = self.new_faults, []
        return faults

    def count_broken(self, faults: list[Fault], together: int) -> int:
        """The number of different samples that all ranks together have replaced since this launch; new ones are told.

        After a resume the count starts anew, so it is no function of the step. All ranks must call; all raise UserError
        where there are too many.

        faults: samples that this rank has replaced since the last row.
        together: their number on all ranks.
        """
        if together:
            found = {(fault.url, fault.key): fault for fault in gather_object(faults)}
            new = [fault for place, fault in found.items() if place not in self.broken]
            self.broken |= found
            self.batches.budget.check(self.broken.values())
            if new:
                what = f"{counted(len(new), 'broken image')} replaced, {len(self.broken):,} so far (broken.jsonl)"
                self.progress.say(f"{what}: {listed(new)}")
        return len(self.broken)

    def write_broken(self) -> None:
        """Appends this rank's newly replaced samples to broken.jsonl."""
        faults, self.batches.faults = self.batches.faults, []
        self.new_faults += faults
        if faults:
            append(self.folder / "broken.jsonl", "".join(json.dumps(asdict(fault)) + "\n" for fault in faults))

    def validate(self) -> None:
        validation, taken = self.validation, self.taken
        assert validation is not None
        self.writer.wait()  # data workers are forked, and no thread should be at work then
        try:
            with self.preemption.during("within this validation"):
                row = validation(self.run.ema.model, taken, self.preemption)
        except Interrupted:
            raise
        except Exception:
            self.save_alone()  # as where it does not fit into memory; it is done again when the run goes on
            raise
        self.progress.say(self.history.line(taken, row, validation.picture(taken)))
        self.record(row, self.health.judge(taken, row, validation.example))
        self.trackers.show(taken, lambda: pictures_for_trackers(validation.shown))
        self.validated = {taken: row}
        self.last_row = (time.perf_counter(), taken)
        self.progress.unpause()

    def save(self) -> None:
        """The main process begins to write a checkpoint, after which it deletes those no longer needed."""
        taken = self.taken
        self.stop_if_never_finite()
        tensors = tensors_of(self.run, self.meter)
        if self.accelerator.is_main_process:
            meta = meta_of(self.run, self.recipe, self.index.fingerprint, self.meter, self.health, taken)
            meta["metrics"] = self.validated.get(taken, {})
            self.writer.save(taken, tensors, meta)
        self.saved = taken

    def save_alone(self) -> None:
        """After an error: saves what no checkpoint holds yet, where no other process has to save at the same time."""
        if self.accelerator.num_processes == 1 and self.saved < self.taken:
            with suppress(UserError, OSError):  # the user is to read what ended the run
                self.save()

    def conclude_saving(self) -> None:
        """Waits, on all ranks, until the last checkpoint is written."""
        self.writer.wait()
        self.accelerator.wait_for_everyone()

    def stop_if_never_finite(self) -> None:
        guard = self.run.guard
        if guard.exhausted():
            path = self.folder / f"nonfinite_rank_{self.accelerator.process_index}.json"
            with atomic_file(path) as stage:
                stage.write_text(json.dumps(guard.suspects(), indent=1))
            raise UserError(
                f"gradients were not finite in {int(guard.longest)} steps in a row",
                f"look at the samples named in {path}; weights and checkpoints are those of the last good step",
            )
