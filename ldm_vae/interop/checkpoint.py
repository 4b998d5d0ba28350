"""The checkpoint folder: safetensors and JSON, nothing pickled; it appears whole or not at all.

    RUN/checkpoints/step_00001000/
        model.safetensors  ema.safetensors  ...   one file for each group of tensors
        meta.json       {"format": "ldm_vae.checkpoint", "version": 2, "step": 1000, "model": {...}, ...}
        manifest.json   {"files": [{"name", "bytes", "sha256"}, ...]} of the files above, written last

A save writes a hidden folder, flushes it to the disk and renames it (`ldm_vae.atomic`). One process writes; any number
of processes may read at the same time. `train/checkpoint.py` decides when a run saves and what it keeps.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldm_vae.atomic import REPLACED, atomic_folder
from ldm_vae.documents import DamagedFile, read_json
from ldm_vae.errors import UserError
from ldm_vae.system import reading
from ldm_vae.tensors import read_tensors

CHECKPOINT_FORMAT = "ldm_vae.checkpoint"
CHECKPOINT_VERSION = 2
SAVED = ("*.safetensors", "meta.json", "manifest.json")  # all that a checkpoint may hold
RENAMED_SINCE_VERSION_1 = {"log_variance": "heads.log_variance.value"}  # names of tensors: then -> now
_STEP_FOLDER = re.compile(r"step_(\d+)")
ReadT = TypeVar("ReadT")
logger = logging.getLogger(__name__)


class _ManifestEntry(BaseModel):
    name: str
    bytes: int
    sha256: str  # lower-case hexadecimal


class _Manifest(BaseModel):
    files: list[_ManifestEntry]


class _Meta(BaseModel):
    """What is checked of meta.json: the fields that anything reads. Earlier versions lack most of them."""

    model_config = ConfigDict(strict=True)

    step: NonNegativeInt
    model: dict[str, Any]
    data: str | None = None
    origin: dict[str, Any] | None = None
    metrics: dict[str, float | None] = {}
    frozen: dict[str, str] = {}
    health: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}
    meter: list[str] = []


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; only `meta` is in memory.

    folder: the checkpoint's folder.
    meta: content of meta.json.
    """

    folder: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.meta["step"])

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of tensors."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.safetensors")))

    @staticmethod
    def write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> Checkpoint:
        """Saves a checkpoint as `folder`, and replaces an earlier folder of that name.

        tensors: {group: {name: tensor}}. Tensors may be strided or share memory; such tensors are copied first, and are
        separate tensors when they are read.
        meta: JSON with at least "step" and "model".
        Raises UserError where the disk is full; the earlier folder then stays as it was.
        """
        if missing := {"step", "model"} - meta.keys():
            raise ValueError(f"meta lacks {sorted(missing)}")
        meta = {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, **meta}
        needed = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        with atomic_folder(folder, ours=SAVED, needed=needed) as stage:
            meta_file = _write_json(stage / "meta.json", meta)
            written = [meta_file]
            for group, named in tensors.items():
                written.append(_write_tensors(stage / f"{group}.safetensors", named))
                shutil.copymode(meta_file, written[-1])  # safetensors writes for the owner alone, whatever the umask
            manifest = _Manifest(files=[_manifest_entry(path) for path in written])
            _write_json(stage / "manifest.json", manifest.model_dump())
        return Checkpoint.open(folder)

    @staticmethod
    def open(folder: Path) -> Checkpoint:
        """Reads `meta` only. Raises UserError where `folder` is no checkpoint, or one of a newer version."""
        remedy = f"give a run or one of its checkpoints, such as {Path('RUN') / 'checkpoints' / 'step_00001000'}"
        try:
            meta = read_json(folder / "meta.json", "use another checkpoint of the run")
        except FileNotFoundError as error:
            raise UserError(f"{folder} is no checkpoint (no readable meta.json)", remedy) from error
        if meta.get("format") != CHECKPOINT_FORMAT:
            raise UserError(f"{folder} is no checkpoint (meta.json does not say {CHECKPOINT_FORMAT})", remedy)
        if not isinstance(version := meta.get("version"), int) or version > CHECKPOINT_VERSION:
            what = f"{folder} has format version {version!r}, newer than {CHECKPOINT_VERSION}"
            raise UserError(what, "update ldm_vae")
        try:
            _Meta.model_validate(meta)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            what = f"{folder / 'meta.json'} is damaged ({place})"
            raise UserError(what, "use another checkpoint of the run") from None
        return Checkpoint(folder, meta)

    @staticmethod
    def all(run: Path) -> list[Checkpoint]:
        """Every checkpoint of `run` that opens, by ascending step; they are not verified. Warns about the others."""
        found = []
        for folder in _folders(run):
            try:
                found.append(Checkpoint.open(folder))
            except UserError as error:
                logger.warning("skipped %s", error)
        return found

    @staticmethod
    def latest(run: Path) -> Checkpoint | None:
        """The newest checkpoint of `run` whose files are whole, or None. Warns about each one that is skipped.

        Raises UserError for a whole checkpoint of a newer version: an older checkpoint would lose its steps.
        """
        folders: list[Path] = []
        while folders != (folders := _folders(run)):  # a running trainer may delete old ones while they are read
            for folder in reversed(folders):
                if problems := find_damage(folder):
                    logger.warning("skipped checkpoint %s: %s", folder, "; ".join(problems))
                    continue
                with _suppress_if_gone(folder):
                    return Checkpoint.open(folder)
        return None

    @staticmethod
    def at(run: Path, step: int) -> Checkpoint:
        """The checkpoint of `run` after `step` steps; it is not verified. Raises UserError where there is none."""
        for checkpoint in Checkpoint.all(run):
            if checkpoint.step == step:
                return checkpoint
        raise UserError(f"{run} has no checkpoint of step {step}", "give a step that its folder checkpoints/ holds")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One group of tensors, checked against the manifest. Raises UserError where it is missing or damaged."""
        path = self.folder / f"{name}.safetensors"
        if name not in self.groups:
            raise UserError(f"{self.folder} holds no tensors {name!r}", f"it has {', '.join(self.groups)}")
        if problems := find_damage(self.folder, only=path.name):
            raise UserError(f"checkpoint {self.folder} is damaged", f"{'; '.join(problems)}; use another of the run")
        try:
            found = read_tensors(path)
        except SafetensorError as error:  # what was saved has this digest, so somebody else wrote it
            raise UserError(f"{path} holds no tensors", f"use another checkpoint of the run ({error})") from None
        return found if self.meta["version"] > 1 else {_renamed(key): value for key, value in found.items()}


def read_latest(run: Path, read: Callable[[Checkpoint], ReadT]) -> ReadT:
    """What `read` returns for the newest whole checkpoint of `run`.

    A running trainer keeps the last few: where it deletes one while it is read, the next one is read.
    Raises UserError where there is none, and what `read` raises.
    """
    while (checkpoint := Checkpoint.latest(run)) is not None:
        with _suppress_if_gone(checkpoint.folder):
            return read(checkpoint)
    raise UserError(f"run {run} has no whole checkpoint", "train it until its first one is saved")


@contextmanager
def _suppress_if_gone(folder: Path) -> Iterator[None]:
    """Ends quietly where a reader fails because a running trainer has deleted the checkpoint; errors else pass."""
    try:
        yield
    except (UserError, OSError):
        if folder.exists():
            raise
        logger.warning("checkpoint %s was deleted while it was read", folder)


def _renamed(key: str) -> str:
    """The present name of a tensor of version 1. In an optimizer's group, a moment precedes it, such as `exp_avg/`."""
    moment, slash, name = key.rpartition("/")
    return f"{moment}{slash}{RENAMED_SINCE_VERSION_1.get(name, name)}"


def _folders(run: Path) -> list[Path]:
    """Checkpoint folders by ascending step.

    A save that replaces a folder first gives the old one a hidden name. If it was killed before it wrote the new one,
    the hidden folder is the checkpoint of that step.
    """
    steps: dict[int, Path] = {}
    for path in sorted((run / "checkpoints").glob("*")):  # hidden names come first
        if (match := _STEP_FOLDER.fullmatch(path.name.removeprefix(REPLACED))) and path.is_dir():
            steps[int(match[1])] = path
    return [steps[step] for step in sorted(steps)]


def find_damage(folder: Path, only: str | None = None) -> list[str]:
    """Reads the files of a checkpoint, and returns what is wrong with them, one line each; empty where nothing is.

    only: name of the one file to read; None reads all.
    """
    try:
        manifest = _Manifest.model_validate(read_json(folder / "manifest.json", ""))
    except FileNotFoundError:
        return ["manifest.json is missing"]
    except (DamagedFile, ValidationError):
        return ["manifest.json is damaged"]
    listed = {file.name: file for file in manifest.files}
    # A file that the manifest does not list shows that a name in the manifest is damaged.
    present = {path.name for path in folder.glob("*.safetensors")} | {"meta.json"}
    if only is not None:
        present, listed = {only}, {name: file for name, file in listed.items() if name == only}
    problems = [f"{name} is not in the manifest" for name in sorted(present - listed.keys())]
    return problems + [problem for file in listed.values() for problem in _damage_of_file(folder, file)]


def _damage_of_file(folder: Path, expected: _ManifestEntry) -> Iterator[str]:
    path = folder / expected.name
    try:
        if path.parent != folder or not path.is_file():
            yield f"{expected.name} is missing"
        elif (size := path.stat().st_size) != expected.bytes:
            yield f"{expected.name} has {size:,} bytes, not {expected.bytes:,}"
        elif _manifest_entry(path).sha256 != expected.sha256:
            yield f"{expected.name} has changed (sha256)"
    except FileNotFoundError:  # a running trainer deletes old checkpoints
        yield f"{expected.name} is missing"


def _manifest_entry(path: Path) -> _ManifestEntry:
    with reading(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _ManifestEntry(name=path.name, bytes=path.stat().st_size, sha256=digest)


def _write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> Path:
    storages: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if not tensor.is_contiguous():
            separate[name] = tensor.detach().contiguous()
        elif tensor.untyped_storage().data_ptr() in storages:  # safetensors refuses shared memory
            separate[name] = tensor.detach().clone()
        else:
            separate[name] = tensor.detach()
            storages.add(tensor.untyped_storage().data_ptr())
    with reading(path):
        save_file(separate, path, metadata={"format": "pt"})
    return path
