"""The format of latents on disk: a tar for each shard of images, of the same name, and `latents.json` about them.

    OUT/000000.tar           per sample KEY.moments.npy (2c, h, w), mean then log-variance; or KEY.mode.npy,
                             KEY.sample.npy (c, h, w); float16, raw, so that a scale can be measured later;
                             with `mirrored` also KEY.mirrored.moments.npy, of the mirrored image;
                             then all other fields of the sample
    OUT/records/000000.json  what is in that shard; written after the shard, as the sign that it is finished
    OUT/records/.*.lock      empty; locked by the one process that is writing that file
    OUT/latents.json         the job; once every shard is finished also scale, statistics, counts and sizes

Plain webdataset reads the tars. Nothing in them depends on when or in how many processes they were written.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from pydantic import Field, model_validator

from ldm_vae.atomic import atomic_file, explain_disk_errors, make_folder
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.errors import UserError
from ldm_vae.recipe import Config, validate

LATENTS_FILE, RECORDS_FOLDER = "latents.json", "records"
ENCODED = ("*.tar", LATENTS_FILE, f"{RECORDS_FOLDER}/*.json", f"{RECORDS_FOLDER}/.*.lock")  # all that encode writes
LatentKind = Literal["moments", "mode", "sample"]


class LatentJob(Config):
    """Everything that decides the bytes of latent shards."""

    codec: str
    """sha256 of the weights."""

    factor: int
    """Pixels per latent position, along each side."""

    channels: int
    """Channels of a latent; moments have twice as many."""

    logvar_range: tuple[float, float] | None
    """[low, high]: the log-variances of moments are clamped to it before they are used; null where the codec has no
    Gaussian posterior."""

    latents: LatentKind
    """What is stored of the posterior."""

    mirrored: bool
    """Whether the latent of the mirrored image is stored too."""

    image_channels: int
    """Channels of the images."""

    resize: int | None
    """Short side of the images in pixels; null leaves them as they are."""

    resize_filter: Literal["bicubic"] = "bicubic"
    """How images are resampled."""

    crop: int | None
    """Side in pixels of the square cut from the middle; null cuts nothing."""

    multiple: int
    """Images are padded to a multiple of so many pixels, on the right and below, by reflection."""

    precision: str
    """In which the network ran: float32 or bfloat16."""

    batch: int
    """Images at a time; another number rounds differently."""

    keep_image: bool
    """Whether the image itself is carried along."""

    seed: int
    """Seed of the samples from the posterior; each sample is a function of seed and key."""

    @model_validator(mode="after")
    def _check_range(self) -> LatentJob:
        if self.latents == "moments" and self.logvar_range is None:
            raise ValueError("moments need a logvar_range")
        return self

    @property
    def image(self) -> ImageConfig:
        """What is done to an image before it is encoded."""
        return ImageConfig(
            channels=self.image_channels,
            resize=self.resize,
            resize_filter=self.resize_filter,
            crop=self.crop,
            crop_mode="center",
        )


class ShardRecord(Config):
    """What is in one finished shard."""

    name: str
    """Name of the tar."""

    bytes: int
    """Size in bytes of the shard of images that it was made from."""

    keys: tuple[str, ...]
    """Keys of the samples, in the order of the tar."""

    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image before padding, in pixels."""

    quarantined: tuple[tuple[str, str], ...]
    """(key, reason) of samples that were left out."""

    statistics: dict[str, Any]
    """Moments of all its latents, in the form of metrics.latent.LatentMoments."""


class LatentsFile(Config):
    """latents.json."""

    format: Literal["ldm_vae.latents"] = "ldm_vae.latents"

    version: Literal[1] = 1

    complete: bool = False
    """Whether every shard is finished; until then samples, scale, statistics, shards, sizes, quarantined are empty."""

    dtype: Literal["float16"] = "float16"

    job: LatentJob

    samples: int = 0
    """Samples in all shards."""

    scale: dict[str, Any] | None = None
    """Keys of a diffusers config: the scale of the codec, or else the one that `statistics` gives."""

    statistics: dict[str, Any] | None = None
    """Statistics of everything encoded, gathered in float64."""

    shards: dict[str, int] = Field(default_factory=dict)
    """Name of a shard -> number of its samples."""

    sizes: dict[str, dict[str, tuple[int, int]]] = Field(default_factory=dict)
    """Name of a shard -> key -> (height, width) in pixels."""

    quarantined: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Name of a shard -> key -> reason why the sample was left out."""


@dataclass(frozen=True)
class LatentSample:
    """What is written for one sample.

    key: name of the sample.
    arrays: name of the field (`moments.npy`) -> (C, h, w).
    fields: other fields that are carried along, name -> content.
    """

    key: str
    arrays: Mapping[str, npt.NDArray[np.float16]]
    fields: Mapping[str, bytes]


def write_latent_shard(path: Path, samples: Iterable[LatentSample]) -> None:
    """Writes a tar, whole or not at all; equal samples give equal bytes. Raises UserError if the disk is full."""
    with atomic_file(path) as stage, tarfile.open(stage, "w") as tar:
        for sample in samples:
            for field, array in sample.arrays.items():
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                _add(tar, f"{sample.key}.{field}", content.getvalue())
            for field, data in sample.fields.items():
                _add(tar, f"{sample.key}.{field}" if field else sample.key, data)


def open_job(folder: Path, job: LatentJob) -> None:
    """Makes `folder`, or finds the same job in it. Raises UserError if it holds anything else."""
    path = folder / LATENTS_FILE
    if not path.exists() and folder.is_dir() and any(folder.glob("[!.]*.tar")):
        raise UserError(f"{folder} holds shards that are no latents", "give the name of a new folder")
    make_folder(folder / RECORDS_FOLDER)
    with (
        explain_disk_errors(path),
        FileLock(lock_path(folder, LATENTS_FILE)),
    ):  # of processes that start together, the first writes
        if not path.exists():
            write_latents_file(folder, LatentsFile(job=job))
    ours, theirs = job.model_dump(mode="json"), read_latents_file(folder).job.model_dump(mode="json")
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"{folder} holds latents made with {name} {_short(theirs[name])}, not {_short(value)}",
                "give another folder, or the options they were made with",
            )


def lock_path(folder: Path, name: str) -> Path:
    """Path of the lock for a file of `folder`."""
    return folder / RECORDS_FOLDER / f".{name}.lock"


def write_latents_file(folder: Path, content: LatentsFile) -> None:
    # One line for each key, because indented sizes of a million images would fill as many lines.
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.model_dump(mode="json").items()]
    with atomic_file(folder / LATENTS_FILE) as stage:
        stage.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_latents_file(folder: Path) -> LatentsFile:
    """Reads latents.json. Raises UserError if it is missing or damaged."""
    path = folder / LATENTS_FILE
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        raise UserError(f"{folder} has no {LATENTS_FILE}", "give a folder that `ldm-vae encode` wrote") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged", "run `ldm-vae encode` into that folder again")
    return validate(LatentsFile, content, str(path))


def write_record(folder: Path, record: ShardRecord) -> None:
    with atomic_file(folder / RECORDS_FOLDER / f"{Path(record.name).stem}.json") as stage:
        stage.write_text(json.dumps(record.model_dump(mode="json")) + "\n")


def read_records(folder: Path) -> dict[str, ShardRecord]:
    """Name of a finished shard -> its record, by name. Damaged records, and those of lost shards, are left out."""
    records = {}
    for path in sorted((folder / RECORDS_FOLDER).glob("[!.]*.json")):  # hidden files are what a killed writer left
        try:
            record = ShardRecord.model_validate_json(path.read_bytes())
        except ValueError:
            continue
        if (folder / record.name).is_file():
            records[record.name] = record
    return records


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time and owner stay 0, so that equal samples give equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
