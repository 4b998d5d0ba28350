"""The trackers of a run (TensorBoard, W&B, trackio): they get its recipe, rows, warnings and pictures.

All are started by accelerate's own classes, on the main process alone. Their files lie in the run folder: TensorBoard's
in RUN/tensorboard, those of W&B in RUN/wandb. trackio keeps its own in the user's cache (TRACKIO_DIR).

A run that continues goes on under its name. TensorBoard is told to forget what a killed run logged after the
checkpoint, so that curves are not torn. W&B drops rows of steps that it has, and trackio keeps both: the numbers are
the same.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from ldm_vae.atomic import atomic_file
from ldm_vae.documents import read_text
from ldm_vae.errors import UserError
from ldm_vae.recipe import dump, leaves
from train.recipe import Recipe

PROJECT = "ldm_vae"  # the runs of all recipes stand beside each other there
FORMER_FOLDER = "ldm_vae"  # where runs of 0.1.0 have the files of TensorBoard


class Trackers:
    """The trackers of this process: none on others than the main one. What cannot be written ends the run."""

    def __init__(self, trackers: Sequence[GeneralTracker]) -> None:
        self.trackers = trackers
        self.warned: list[tuple[int, str]] = []  # since this launch: W&B shows a table as a whole

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Sends the row of a step."""
        with _writing():
            for tracker in self.trackers:
                tracker.log(dict(row), step=step)

    def warn(self, step: int, warnings: Sequence[str]) -> None:
        """Sends warnings as text."""
        if not warnings:
            return
        self.warned += [(step, warning) for warning in warnings]
        with _writing():
            for tracker in self.trackers:
                if tracker.name == "wandb":
                    tracker.log_table("warnings", ["step", "warning"], [list(one) for one in self.warned], step=step)
                else:
                    tracker.log({"warnings": "\n\n".join(warnings)}, step=step)

    def show(self, step: int, pictures: Callable[[], Iterable[tuple[str, Image.Image]]]) -> None:
        """Sends pictures by their names.

        pictures: makes them; it is called only where there is a tracker.
        """
        if not self.trackers:
            return
        named = dict(pictures())
        with _writing():
            for tracker in self.trackers:
                SHOWS[tracker.name](tracker, step, named)


def start_trackers(recipe: Recipe, step: int, accelerator: Accelerator) -> Trackers:
    """Starts the trackers of a recipe. accelerate's `end_training` ends them.

    RUN/tracker_id keeps the run's name there, so that a run that continues does so under the same name.

    step: number of optimizer steps already taken.
    """
    if not accelerator.is_main_process:
        return Trackers([])
    folder, name = Path(recipe.output), _name_of(Path(recipe.output))
    settings = settings_of(recipe)
    started: list[GeneralTracker] = []
    with _writing():
        for kind in recipe.log.trackers:
            tracker = STARTS[kind](folder, name, step, settings)
            tracker.start()
            if kind == "tensorboard":
                _describe_to_tensorboard(tracker.tracker, recipe, settings)
            elif kind == "wandb":
                tracker.store_init_configuration(settings)
            started.append(tracker)
    accelerator.trackers = started
    return Trackers(started)


def settings_of(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """Every field of the resolved recipe by its dotted name; what is neither number nor text is written as JSON."""
    values = leaves(recipe.model_dump(mode="json"))
    return {name: value if isinstance(value, int | float | str) else json.dumps(value) for name, value in values}


def _name_of(folder: Path) -> str:
    path = folder / "tracker_id"
    if not path.exists():
        with atomic_file(path) as stage:
            stage.write_text(f"{folder.name}-{secrets.token_hex(4)}")
    return read_text(path, "remove it, and the tracker starts a new run")


def _tensorboard(folder: Path, name: str, step: int, settings: Mapping[str, Any]) -> GeneralTracker:
    inside = FORMER_FOLDER if (folder / FORMER_FOLDER).is_dir() else "tensorboard"
    return TensorBoardTracker(inside, str(folder), purge_step=step + 1)  # row n shows the state after n steps


def _wandb(folder: Path, name: str, step: int, settings: Mapping[str, Any]) -> GeneralTracker:
    # wandb's own place is the current folder.
    return WandBTracker(PROJECT, id=name, name=folder.name, resume="allow", dir=str(folder))


def _trackio(folder: Path, name: str, step: int, settings: Mapping[str, Any]) -> GeneralTracker:
    return TrackioTracker(PROJECT, name=name, resume="allow", config=dict(settings))


def _describe_to_tensorboard(writer: Any, recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """The recipe as hyperparameters, beside which TensorBoard shows the latest validation, and as text.

    SummaryWriter.add_hparams, which accelerate calls, would make a further run of them, in a folder of its own.
    """
    from torch.utils.tensorboard.summary import hparams

    measured = {f"validation/{name}": 0.0 for name in (*recipe.validation.metrics, "rate")}
    metrics = measured if recipe.data.validation is not None else {}
    experiment, session, _ = hparams(dict(settings), metrics)  # type: ignore[no-untyped-call]
    writer.file_writer.add_summary(experiment)
    writer.file_writer.add_summary(session)
    writer.add_text("recipe", f"```yaml\n{dump(recipe)}```")
    writer.flush()


def _show_in_tensorboard(tracker: Any, step: int, pictures: Mapping[str, Image.Image]) -> None:
    for name, picture in pictures.items():
        layout = "HW" if picture.mode == "L" else "HWC"
        tracker.writer.add_image(name, np.asarray(picture), step, dataformats=layout)
    tracker.writer.flush()


def _show_in_wandb(tracker: Any, step: int, pictures: Mapping[str, Image.Image]) -> None:
    tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)


def _show_in_trackio(tracker: Any, step: int, pictures: Mapping[str, Image.Image]) -> None:
    import trackio  # type: ignore[import-not-found,unused-ignore]

    tracker.log({name: trackio.Image(picture) for name, picture in pictures.items()}, step=step)


STARTS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
SHOWS = {"tensorboard": _show_in_tensorboard, "wandb": _show_in_wandb, "trackio": _show_in_trackio}


@contextmanager
def _writing() -> Iterator[None]:
    """Around what trackers write. Raises UserError where they cannot."""
    try:
        yield
    except OSError as error:
        raise UserError(f"a tracker cannot write ({error})", "mend that, or set log.trackers: []") from error
