"""Finds what is wrong with a folder of latents: by itself, and against the images that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldm_vae.atomic import find_foreign
from ldm_vae.data.shards.disk import is_file, listed, on_disk
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.data.shards.tar import BrokenTar, members
from ldm_vae.latents.encode import is_made_from, names_of
from ldm_vae.latents.folder import describe_file, read_latents_file, read_record, record_path
from ldm_vae.latents.format import ENCODED, LATENTS_FILE, LatentsFile, ShardRecord, stored_arrays

Kind = Literal["unfinished", "damaged", "duplicate", "foreign", "stale"]


@dataclass(frozen=True)
class LatentProblem:
    """What is wrong.

    shard: name of the tar, or of another file in the folder.
    kind: unfinished, to be encoded still; damaged, not what was written; duplicate, a key that another shard has, too;
        foreign, nothing that encode wrote for these images; stale, made from images that have changed since.
    key: the sample, or empty.
    """

    shard: str
    kind: Kind
    key: str
    reason: str


@dataclass(frozen=True)
class LatentReport:
    """What a check found. The folder is whole where there are no problems.

    version: of latents.json.
    shards, samples, bytes: of the finished tars that can be read.
    """

    version: int
    shards: int
    samples: int
    bytes: int
    problems: list[LatentProblem]


def check_latents(folder: Path, source: Index | None) -> LatentReport:
    """Reads every tar and every record of a folder of latents.

    source: the shards of images that it should have been made from, which are read, too; None checks the folder alone.
    Raises UserError where latents.json is missing or damaged, or where a shard of images cannot be read.
    """
    info = read_latents_file(folder)
    names = sorted({*info.shards, *(name for name in listed(folder) if name.endswith(".tar") and name[0] != ".")})
    found = {name: read_record(folder, name) for name in names}
    records = {name: record for name, record in found.items() if record is not None}
    problems = [] if info.complete else [LatentProblem("", "unfinished", "", "run `ldm-vae encode` again")]
    if info.complete and info.samples != sum(shard.samples for shard in info.shards.values()):
        problems.append(LatentProblem(LATENTS_FILE, "damaged", "", f"its shards do not have {info.samples} samples"))
    whole: list[ShardRecord] = []
    for name in names:
        if name not in records and name not in info.shards:
            problems.append(LatentProblem(name, "foreign", "", "it has no record: a killed run, or another program"))
        elif problem := _damage(folder, info, name, records.get(name)):
            problems.append(LatentProblem(name, "damaged", "", problem))
        else:
            whole.append(records[name])
    problems += _duplicates(records)
    problems += _other_files(folder)
    if source is not None:
        problems += _against(source, records)
    sizes = [on_disk(path, path.stat).st_size for path in (folder / record.name for record in whole)]
    return LatentReport(info.version, len(whole), sum(len(record.keys) for record in whole), sum(sizes), problems)


def _damage(folder: Path, info: LatentsFile, name: str, record: ShardRecord | None) -> str | None:
    """Why a tar is not what was written, or None."""
    path = folder / name
    if record is None:
        return f"{record_path(folder, name).name} is missing or damaged"
    if not is_file(path):
        return "it is missing"
    if info.complete and name not in info.shards:
        return f"{LATENTS_FILE} does not name it"
    if info.complete:
        expected = info.shards[name]
        if expected.record not in (None, describe_file(record_path(folder, name)).sha256):
            return f"{record_path(folder, name).name} is another one than latents.json names"
        if expected.samples != len(record.keys):
            return f"its record has {len(record.keys)} samples, latents.json {expected.samples}"
    if record.tar is not None and (now := describe_file(path)) != record.tar:  # version 1 has no digest
        return "it has changed" if now.bytes == record.tar.bytes else f"{now.bytes} bytes, not {record.tar.bytes}"
    return _missing_arrays(path, info, record)


def _missing_arrays(path: Path, info: LatentsFile, record: ShardRecord) -> str | None:
    """Whether the tar has what its record names, by its headers."""
    try:
        with closing(RangeReader()) as reader:
            there = [member.name for member in members(str(path), reader)]
    except (BrokenTar, Missing) as error:
        return str(error)
    wanted = (f"{key}.{field}" for key in record.keys for field in stored_arrays(info.job))
    following = iter(there)
    lost = next((name for name in wanted if name not in following), None)  # in this order
    return None if lost is None else f"it lacks {lost}, or has it at another place"


def _duplicates(records: Mapping[str, ShardRecord]) -> Iterator[LatentProblem]:
    first: dict[str, str] = {}
    for name, record in records.items():
        for key in record.keys:
            if key in first:
                yield LatentProblem(name, "duplicate", key, f"it is in {first[key]}, too")
            else:
                first[key] = name


def _other_files(folder: Path) -> Iterator[LatentProblem]:
    for other in on_disk(folder, lambda: list(find_foreign(folder, ENCODED))):
        yield LatentProblem(str(other.relative_to(folder)), "foreign", "", "encode did not write it")


def _against(source: Index, records: Mapping[str, ShardRecord]) -> Iterator[LatentProblem]:
    shards = dict(zip(names_of(source), source.shards, strict=True))
    for name in sorted(shards.keys() - records.keys()):
        yield LatentProblem(name, "unfinished", "", "it is not encoded")
    for name, record in records.items():
        if name not in shards:
            yield LatentProblem(name, "foreign", "", "no shard of images has this name")
        elif not is_made_from(record, shards[name], verify=True):
            yield LatentProblem(name, "stale", "", "its images, labels or texts have changed")
