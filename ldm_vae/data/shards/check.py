"""Finds what is wrong with shards: what webdataset silently loses, mixes up or follows, and broken contents.

It reads headers, and contents of some samples or, if asked, of all, one member at a time. It writes nothing, extracts
nothing and follows no link.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from webdataset.tariterators import base_plus_ext

from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.shards.beside import beside_shards
from ldm_vae.data.shards.content import READ, content_problem, size_problem
from ldm_vae.data.shards.disk import is_folder, read_file
from ldm_vae.data.shards.names import LABEL, split_name
from ldm_vae.data.shards.retry import Forbidden, Missing
from ldm_vae.data.shards.scan import FOLDER_SHARD, image_folder, scan_folder, scan_shard
from ldm_vae.data.shards.shard import (
    INDEX_FILE,
    INDEX_FORMAT,
    ShardIndex,
    parse_index,
)
from ldm_vae.data.shards.storage import RangeReader, expand_shards, read_whole
from ldm_vae.data.shards.tar import TAR_BLOCK, whole_blocks
from ldm_vae.data.shards.urls import folder_of, is_remote, is_signed, is_tar, name_of, within
from ldm_vae.documents import DamagedFile, parse_json
from ldm_vae.errors import UserError, in_one_line
from ldm_vae.passwords import without_secrets

LOOKED_AT = 8  # samples of a shard whose contents are read first; if one is broken, all are
TAIL_BYTES = 2**20  # bytes read at once after the end mark
SampleFields = Mapping[str, Mapping[str, tuple[int, int]]]  # key -> field -> (offset, size)
SKIPPED = re.compile(r"__[^/]*__($|/)")  # names that webdataset leaves out (tar_file_iterator, skip_meta)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a shard.

    member: name of a member, or key of a sample; empty if the whole shard is concerned.
    reason: what is wrong, in one line.
    """

    member: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was found in a shard or in an index.

    url: where it lies.
    shard: the samples of the shard that training can use; None if `url` is an index.
    problems: everything that is wrong with it.
    """

    url: str
    shard: ShardIndex | None
    problems: list[Problem]


def check_shards(spec: str, *, decode: bool, channels: int | None) -> Iterator[Report]:
    """Gives a report for each shard, and one for each index that has problems of its own.

    decode: read every picture, label, json and txt. Otherwise those of `LOOKED_AT` samples of each shard are read, and
        all of a shard where one of these is broken.
    channels: those of the pictures; None for 3, and without `decode` for any number in npy and tiff.
    Raises UserError if `spec` names nothing, or if a disk or server fails.
    """
    images = image_folder(spec)
    if images is not None and (report := _inspect_folder(images, decode, channels)) is not None:
        yield report
        return
    shards: dict[str, ShardIndex] = {}
    for folder, names in _by_folder(expand_shards(spec)).items():
        known, problems = _read_index(folder, names)
        present = names or sorted(known)  # a remote folder has what its index lists
        if not is_remote(folder) and is_folder(spec.removeprefix("file://")):
            problems += [Problem(name, "listed, but not there") for name in known if name not in names]
            if unread := [Problem(name, f"not read: {kind.counted(1)}") for kind, name in beside_shards(Path(folder))]:
                yield Report(folder, None, unread)
        if problems:
            yield Report(without_secrets(within(folder, INDEX_FILE)), None, problems)
        for name in present:
            url = within(folder, name)
            try:
                shard, problems = _inspect(url, decode, channels)
                if known:
                    problems += _compare(shard, known.get(name), problems)
            except Missing as error:
                shard, problems = None, [Problem("", str(error))]
            if shard is not None:
                shards[url] = shard
            yield Report(without_secrets(url), shard, problems)
    yield from _repeated_keys(shards)


def index_folders(spec: str) -> list[Path]:
    """The folders whose shards `spec` names, whose index.json may be written.

    Raises UserError if it leaves some shards out, if they are remote, and if an index.json there is none of ours.
    """
    folders = _by_folder(expand_shards(spec))
    for folder, names in folders.items():
        if is_remote(folder):
            raise UserError(f"{folder} is remote", "write the index where the shards are local, and copy it there")
        for url in expand_shards(folder):
            if Path(url).name not in names:
                what = f"{spec} leaves {url} out"
                raise UserError(what, f"an index lists every shard of a folder: give {folder}")
        refuse_other_index(Path(folder))
    return [Path(folder) for folder in folders]


def refuse_other_index(folder: Path) -> None:
    """Raises UserError if the index.json of a folder is of another program. One that is damaged may be replaced."""
    path = folder / INDEX_FILE
    try:
        content = parse_json(read_file(path), str(path), "", names=True)
    except (Missing, DamagedFile):
        return
    if not isinstance(content, dict) or content.get("format") != INDEX_FORMAT:
        raise UserError(f"{path} is none of ldm_vae's", "move it, or the shards: the index stands beside them")


def _by_folder(urls: list[str]) -> dict[str, list[str]]:
    """Groups shards: folder -> names of its shards; no names for a remote folder."""
    folders: dict[str, list[str]] = {}
    for url in urls:
        if is_remote(url) and not is_tar(url):
            folders.setdefault(url, [])
        elif is_remote(url):
            folders.setdefault(folder_of(url), []).append(name_of(url))
        else:
            folders.setdefault(str(Path(url).parent), []).append(Path(url).name)
    return folders


def _read_index(folder: str, names: list[str]) -> tuple[dict[str, ShardIndex], list[Problem]]:
    """Reads the index of a folder, if it has one: name of a shard -> its entry, and what is wrong with the index."""
    try:
        content = read_whole(within(folder, INDEX_FILE))
    except (Missing, Forbidden) as error:
        if isinstance(error, Forbidden) and not (
            is_signed(within(folder, INDEX_FILE)) and names
        ):  # a signature is often that of one file
            raise
        return {}, [Problem("", f"remote shards need an index ({error})")] if is_remote(folder) else []
    try:
        return parse_index(content, without_secrets(within(folder, INDEX_FILE)), folder), []
    except UserError as error:
        return {}, [Problem("", error.what)]


def _inspect(url: str, decode: bool, channels: int | None) -> tuple[ShardIndex, list[Problem]]:
    """Checks one shard: the samples that training can use, and all problems. Raises Missing."""
    scan = scan_shard(url)
    shard, problems = scan.shard, [Problem(member, reason) for member, reason in scan.problems]
    with closing(RangeReader()) as reader:
        usable, found = _inspect_samples(reader, shard, range(shard.samples), decode, channels)
        problems += found
        if not scan.problems:
            problems += _behind_the_end(reader, shard)
    if not problems and not shard.samples:
        problems.append(Problem("", "no sample in it: remove it, or make it anew"))
    return shard.subset(usable), problems


def _inspect_folder(folder: Path, decode: bool, channels: int | None) -> Report | None:
    """Checks a folder of images; None if there are none. Some of each `FOLDER_SHARD` are looked at."""
    shards = scan_folder(folder, group=sys.maxsize)
    if not shards:
        return None
    usable: list[NDArray[np.bool_]] = []
    problems: list[Problem] = []
    with closing(RangeReader()) as reader:
        for start in range(0, shards[0].samples, FOLDER_SHARD):
            chosen = range(start, min(start + FOLDER_SHARD, shards[0].samples))
            mine, found = _inspect_samples(reader, shards[0], chosen, decode, channels)
            usable.append(mine)
            problems += found
    return Report(str(folder), shards[0].subset(np.concatenate(usable)), problems)


def _inspect_samples(
    reader: RangeReader, shard: ShardIndex, chosen: range, decode: bool, channels: int | None
) -> tuple[NDArray[np.bool_], list[Problem]]:
    """Which of the chosen samples of a shard can be used, and what is wrong with them."""
    usable = np.ones(len(chosen), dtype=bool)
    problems: list[Problem] = []
    labelled = LABEL in shard.members
    channels = 3 if decode and channels is None else channels
    some = chosen[:: -(-len(chosen) // LOOKED_AT) or 1]
    decode = decode or any(_content_problems(reader, shard, ordinal, channels) for ordinal in some)
    for place, ordinal in enumerate(chosen):
        key, fields = shard.key(ordinal), shard.fields(ordinal)
        for field in fields:
            name, reason = _name_problem(key, field)
            problems += [Problem(name, reason)] if reason else []
        lost = [] if any(field in EXTENSIONS for field in fields) else [Problem(key, _no_picture(fields))]
        lost += _content_problems(reader, shard, ordinal, channels) if decode else []
        if labelled and LABEL not in fields and not lost:
            problems.append(Problem(key, "no cls, which other samples have: training then uses none"))
        usable[place] = not lost
        problems += lost
    return usable, problems


def _name_problem(key: str, field: str) -> tuple[str, str | None]:
    """The name of a member, and how webdataset reads it, if it reads it differently from us; else None."""
    name = f"{key}.{field}" if field else key
    theirs, rest = base_plus_ext(name)
    if theirs is None or SKIPPED.match(name):
        return name, "webdataset skips this name"
    if theirs != key:
        return name, f"a dot inside the name: webdataset reads field {rest[:60]!r} of key {theirs[-60:]!r}"
    return name, None


def _no_picture(fields: Collection[str]) -> str:
    """Why a sample with these fields has no picture."""
    others = sorted(field for field in fields if field.rpartition(".")[2] in EXTENSIONS)
    if not others:
        return "no picture in this sample"
    return f"no picture in this sample: {others[0]} stands beside one, {others[0].rpartition('.')[2]} would be one"


def _content_problems(reader: RangeReader, shard: ShardIndex, ordinal: int, channels: int | None) -> list[Problem]:
    """What is wrong with the contents of a sample."""
    found = []
    for field in shard.fields(ordinal):
        reason = _content_problem(reader, field, *shard.place(ordinal, field), channels)
        found += [Problem(f"{shard.key(ordinal)}.{field}", reason)] if reason else []
    return found


def _content_problem(
    reader: RangeReader, field: str, url: str, offset: int, size: int, channels: int | None
) -> str | None:
    if field not in READ:
        return None
    if (problem := size_problem(field, size)) is not None:  # before so much is read
        return problem
    try:
        data = reader.read(url, offset, size)
    except Missing as error:
        return in_one_line(error)
    return content_problem(field, data, channels)


def _behind_the_end(reader: RangeReader, shard: ShardIndex) -> list[Problem]:
    """Looks for data after the end mark, the first empty block. After `cat a.tar b.tar`, readers see nothing of b."""
    last = max(int(table.sum(1).max()) for table in shard.members.values()) if shard.members else 0
    position, ended = whole_blocks(last), False
    while position < shard.size:
        data = reader.read(shard.url, position, min(TAIL_BYTES, shard.size - position))
        padded = np.frombuffer(data.ljust(whole_blocks(len(data)), b"\0"), np.uint8)
        filled = [bool(block.any()) for block in padded.reshape(-1, TAR_BLOCK)]
        start = 0
        if not ended:  # headers of folders may come before the end mark
            start = filled.index(False) if False in filled else len(filled)
            ended = start < len(filled)
        if True in filled[start:]:
            at = position + filled.index(True, start) * TAR_BLOCK
            return [Problem("", f"the archive ends before byte {at} of {shard.size}: no reader sees what follows")]
        position += len(data)
    return []


def _compare(shard: ShardIndex, known: ShardIndex | None, problems: list[Problem]) -> list[Problem]:
    """Compares a shard with its entry in the index, which may leave out samples that are broken."""
    if known is None:
        return [Problem("", f"{INDEX_FILE} does not list it")]
    found = []
    if known.size != shard.size:
        found.append(Problem("", f"{INDEX_FILE} says {known.size} bytes, it has {shard.size}"))
    listed = {known.key(ordinal): known.fields(ordinal) for ordinal in range(known.samples)}
    here = {shard.key(ordinal): shard.fields(ordinal) for ordinal in range(shard.samples)}
    broken = {split_name(problem.member)[0] for problem in problems} | {problem.member for problem in problems}
    if (first := _regrouped(listed, here)) is not None:
        return [*found, Problem(first, f"{INDEX_FILE} takes its parts for several samples: write the index anew")]
    found += [
        Problem(key, f"in {INDEX_FILE}, not in the shard") for key in listed if key not in here and key not in broken
    ]
    for key, fields in here.items():
        if key not in listed:
            found.append(Problem(key, f"in the shard, not in {INDEX_FILE}"))
        elif fields != listed[key]:
            found.append(Problem(key, f"{INDEX_FILE} has other places or fields"))
    return found


def _regrouped(listed: SampleFields, here: SampleFields) -> str | None:
    """A sample that is several in the index, if both hold the same members; else None. So 0.1.0 read `0001.seg.png`."""
    ours, theirs = (
        {(f"{key}.{field}", place): key for key, fields in samples.items() for field, place in fields.items()}
        for samples in (here, listed)
    )
    if ours == theirs or ours.keys() != theirs.keys():
        return None
    return next(key for member, key in ours.items() if theirs[member] != key)


def _repeated_keys(shards: Mapping[str, ShardIndex]) -> Iterator[Report]:
    """Reports keys that occur in two shards. Keys are compared by hashes of 8 bytes, which keeps memory small."""
    order = list(shards.values())
    hashes = [np.array([_hash(shard.key(i)) for i in range(shard.samples)], dtype=np.uint64) for shard in order]
    joined = np.concatenate([*hashes, np.empty(0, np.uint64)])
    values, counts = np.unique(joined, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    first: dict[str, str] = {}
    for shard, mine in zip(order, hashes, strict=True):
        problems = []
        for ordinal in np.flatnonzero(np.isin(mine, list(repeated))) if repeated else []:
            key = shard.key(int(ordinal))
            if key in first:
                problems.append(Problem(key, f"the same key as in {first[key]}"))
            first.setdefault(key, shard.name)
        if problems:
            yield Report(without_secrets(shard.url), None, problems)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest())
