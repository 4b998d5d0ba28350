"""Writes and reads the files of a folder of latents: its tars, their records, and latents.json (`format.py`)."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ldm_vae.atomic import atomic_file, explain_disk_errors, make_folder, refuse_url, remove_abandoned
from ldm_vae.data.shards.disk import is_file, is_folder, listed, on_disk, read_file, status
from ldm_vae.data.shards.retry import Missing
from ldm_vae.documents import DamagedFile, parse_object
from ldm_vae.errors import UserError
from ldm_vae.latents import first_version
from ldm_vae.latents.format import (
    LATENTS_FILE,
    RECORDS_FOLDER,
    FinishedShard,
    LatentJob,
    LatentsFile,
    ShardRecord,
    WrittenFile,
    stored_arrays,
)
from ldm_vae.locks import exclusive
from ldm_vae.recipe import validate


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


def write_latent_shard(path: Path, samples: Iterable[LatentSample]) -> WrittenFile:
    """Writes a tar, whole or not at all; equal samples give equal bytes. Raises UserError if the disk is full."""
    with atomic_file(path) as stage:
        with tarfile.open(stage, "w") as tar:
            for sample in samples:
                for field, array in sample.arrays.items():
                    _add(tar, f"{sample.key}.{field}", npy_file(array))
                for field, data in sample.fields.items():
                    _add(tar, f"{sample.key}.{field}" if field else sample.key, data)
        return describe_file(stage)


def npy_file(array: npt.NDArray[np.float16]) -> bytes:
    """The content of an array's file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def describe_file(path: Path) -> WrittenFile:
    """Size and digest of a file. Reads all of it."""

    def describe() -> WrittenFile:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(bytes=path.stat().st_size, sha256=digest)

    try:
        return on_disk(path, describe)
    except Missing as error:
        raise UserError(f"{path} is gone ({error})", "nothing may move it meanwhile; run this again") from error


def begun_job(folder: Path, job: LatentJob) -> LatentsFile | None:
    """The latents.json of `folder`, which holds the same job, of whatever version; None without one. Writes nothing.

    Neither the source is compared here, because shards may move, nor the decoder, because latents don't depend on it.
    Raises UserError if the folder holds anything else.
    """
    refuse_url(folder)
    path = folder / LATENTS_FILE
    there = _names_in(folder, ".tar")
    there += [f"{RECORDS_FOLDER}/{name}" for name in _names_in(folder / RECORDS_FOLDER, ".json")]
    if status(path) is None and there:
        what = f"{folder} holds shards that are no latents ({there[0]})"
        raise UserError(what, "give the name of a new folder")
    if not path.exists():
        return None
    begun = read_latents_file(folder)
    _refuse_other_job(folder, begun, job)
    return begun


def open_job(folder: Path, job: LatentJob) -> LatentsFile:
    """Makes `folder`, or finds the same job in it, and returns its latents.json. Raises UserError as `begun_job`."""
    begun_job(folder, job)  # before anything is made there
    path = folder / LATENTS_FILE
    make_folder(folder / RECORDS_FOLDER)
    for place in (folder, folder / RECORDS_FOLDER):  # where nothing is left to do, no writer comes to do it
        remove_abandoned(place)
    with (
        explain_disk_errors(path),
        exclusive(lock_path(folder, LATENTS_FILE)),
    ):  # of processes that start together, the first writes
        if status(path) is None:
            write_latents_file(folder, LatentsFile(job=job, arrays=stored_arrays(job)))
    begun = read_latents_file(folder)
    _refuse_other_job(folder, begun, job)  # another process may have begun it
    return begun


def _refuse_other_job(folder: Path, begun: LatentsFile, job: LatentJob) -> None:
    ours, theirs = job.model_dump(mode="json"), begun.job.model_dump(mode="json")
    passed_over = ("source", "encoder") if begun.version == 1 else ("source", "codec")  # version 1 had no hash of it
    for name in ours.keys() - {*passed_over}:
        if theirs[name] != ours[name]:
            raise UserError(
                f"{folder} holds latents made with {name} {_short(theirs[name])}, not {_short(ours[name])}",
                "give another folder, or the options they were made with",
            )


def lock_path(folder: Path, name: str) -> Path:
    """Path of the lock for a file of `folder`."""
    return folder / RECORDS_FOLDER / f".{name}.lock"


def write_latents_file(folder: Path, content: LatentsFile, records: Mapping[str, ShardRecord] | None = None) -> None:
    """Writes latents.json in the version of `content`.

    records: of all shards where it is complete; version 1 needs them.
    """
    values = content.model_dump(mode="json")
    if content.version == 1:
        values = first_version.dump_latents_file(
            values, {n: r.model_dump(mode="json") for n, r in (records or {}).items()}
        )
    # One line for each key, because indented entries of a million shards would fill as many lines.
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    with atomic_file(folder / LATENTS_FILE) as stage:
        stage.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_latents_file(folder: Path) -> LatentsFile:
    """Reads latents.json of any version. Raises UserError if it is missing or damaged, or of a later version."""
    path = folder / LATENTS_FILE
    try:
        content = parse_object(read_file(path), str(path), "restore it, or encode into a new folder", names=True)
    except Missing:
        raise UserError(f"{folder} has no {LATENTS_FILE}", "give a folder that `ldm-vae encode` wrote") from None
    if isinstance(version := content.get("version"), int) and version > 2:
        raise UserError(f"{path} has format version {version}, newer than 2", "update ldm_vae")
    if version == 1:
        content = first_version.upgrade_latents_file(content)
    return validate(LatentsFile, content, str(path))


def record_path(folder: Path, name: str) -> Path:
    """Path of the record of a tar."""
    return folder / RECORDS_FOLDER / f"{Path(name).stem}.json"


def finished_shard(folder: Path, record: ShardRecord) -> FinishedShard:
    """What latents.json says of a finished shard."""
    digest = None if record.version == 1 else describe_file(record_path(folder, record.name)).sha256
    return FinishedShard(samples=len(record.keys), left_out=len(record.quarantined), record=digest)


def write_record(folder: Path, record: ShardRecord) -> None:
    lacking = first_version.RECORD_LACKS if record.version == 1 else set()
    with atomic_file(record_path(folder, record.name)) as stage:
        stage.write_text(json.dumps(record.model_dump(mode="json", exclude=lacking)) + "\n")


def read_record(folder: Path, name: str, sha256: str | None = None) -> ShardRecord | None:
    """The record of a tar; None where it is missing or damaged.

    sha256: what its file must have.
    """
    return _read_record(folder, record_path(folder, name), sha256)


def read_records(folder: Path, finished: LatentsFile | None = None) -> dict[str, ShardRecord]:
    """Name of a finished shard -> its record, by name.

    Left out are damaged records, and those of tars that are lost or have another size than they were written with.

    finished: latents.json, which knows the records of a complete folder; others are left out, too.
    """
    records = {}
    known = {} if finished is None else finished.shards
    for path in (folder / RECORDS_FOLDER / name for name in _names_in(folder / RECORDS_FOLDER, ".json")):
        record = _read_record(folder, path, None)
        if record is None or not is_file(tar := folder / record.name):
            continue
        if finished is not None and len(record.statistics.mean) != finished.job.channels:
            continue
        if record.name in known and known[record.name].record not in (None, describe_file(path).sha256):
            continue
        if record.tar is None or on_disk(tar, tar.stat).st_size == record.tar.bytes:
            records[record.name] = record
    return records


def _read_record(folder: Path, path: Path, sha256: str | None) -> ShardRecord | None:
    try:
        data = read_file(path)
        content = parse_object(data, str(path), "", names=True)
    except (Missing, DamagedFile):
        return None
    try:
        record = validate(ShardRecord, content, str(path))
    except UserError:
        return None
    whole = sha256 in (None, hashlib.sha256(data).hexdigest())
    return record if whole and path == record_path(folder, record.name) else None


def _names_in(folder: Path, ending: str) -> list[str]:
    """The names in a folder that end so, sorted, without the hidden ones that killed writers left; none without it."""
    if not is_folder(folder):
        return []
    return [name for name in listed(folder) if name.endswith(ending) and not name.startswith(".")]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time and owner stay 0, so that equal samples give equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
