"""Finds out what is in a shard, or in a folder of images, that has no index."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_vae.data.images.decode import read_npy_header
from ldm_vae.data.images.pixels import BrokenImage, decoding
from ldm_vae.data.shards.disk import is_folder, listed, on_disk
from ldm_vae.data.shards.folder import find_samples
from ldm_vae.data.shards.names import compound_fields, split_name
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.shard import ShardIndex, pack_shard
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.data.shards.tar import BrokenTar, Member, members
from ldm_vae.data.shards.urls import is_tar
from ldm_vae.errors import UserError

SIZE_BYTES = 2**15  # bytes at the start of a picture that nearly always tell its size
FOLDER_SHARD = 256  # samples of a folder that count as one shard


@dataclass(frozen=True)
class Scan:
    """A shard by its headers.

    shard: the samples in it.
    problems: (name of the member, or "" for the whole shard; reason) of everything that training would refuse.
    """

    shard: ShardIndex
    problems: list[tuple[str, str]]


def scan_shard(url: str) -> Scan:
    """Reads the headers of one tar, a few kB a member. Raises Missing, Forbidden or Unreachable."""
    found: list[Member] = []
    broken: list[tuple[str, str]] = []
    with closing(RangeReader()) as reader:
        size = reader.size(url)
        try:
            for member in members(url, reader):
                found.append(member)  # those before the place where the archive breaks stay
        except BrokenTar as error:
            broken.append(("", str(error)))
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    problems: list[tuple[str, str]] = []
    compound = compound_fields([member.name for member in found if member.problem is None])
    previous = None
    for member in found:
        if member.problem is not None:
            problems.append((member.name, member.problem))
            continue
        key, field = split_name(member.name, compound)
        if key in samples and key != previous:
            problems.append((member.name, "its key appeared before, with others in between"))
        if field in samples.setdefault(key, {}):
            problems.append((member.name, "the name appears twice"))
            continue
        samples[key][field] = (member.offset, member.size)
        previous = key
    return Scan(pack_shard(url, size, samples), problems + broken)


def image_folder(spec: str) -> Path | None:
    """The local folder that `spec` names, if no tar lies in it: its images are the samples, if it has any."""
    folder = Path(spec.removeprefix("file://"))
    there = is_folder(folder) and not any(is_tar(name) and not name.startswith(".") for name in listed(folder))
    return folder if there else None


def scan_folder(folder: Path, *, group: int | None = None) -> list[ShardIndex]:
    """The samples in a folder of images (see `folder.py`), in groups that count as a shard each.

    group: samples in each; None is `FOLDER_SHARD`.
    """
    group = group or FOLDER_SHARD
    contents = find_samples(folder)
    contents.left_out.say(str(folder))
    found = contents.samples
    shards = []
    for start in range(0, len(found), group):
        files: list[str] = []
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        for sample in found[start : start + group]:
            samples[sample.key] = {}
            for field, path in sample.files.items():
                samples[sample.key][field] = (len(files), file_size(path))
                files.append(path.relative_to(folder).as_posix())
        total = sum(size for fields in samples.values() for _, size in fields.values())
        shards.append(pack_shard(str(folder), total, samples, tuple(files)))
    return shards


def file_size(path: Path) -> int:
    """Bytes of a file. Raises UserError if it is gone."""
    try:
        return on_disk(path, path.stat).st_size
    except Missing as error:
        raise UserError(f"{path} is gone ({error})", "nothing may move it meanwhile; run this again") from error


def add_picture_sizes(shard: ShardIndex) -> ShardIndex:
    """The same shard with the width and height of every picture, as the headers of the pictures tell them."""
    pictures = np.zeros((shard.samples, 2), dtype=np.int64)
    with closing(RangeReader()) as reader:
        for ordinal in range(shard.samples):
            field = shard.picture(ordinal)
            if field is None:
                continue
            url, offset, size = shard.place(ordinal, field)
            for count in sorted({min(SIZE_BYTES, size), size}):
                try:
                    found = _picture_size(reader.read(url, offset, count), field)
                except Missing:
                    break
                if found is not None:
                    pictures[ordinal] = found
                    break
    return replace(shard, pictures=pictures)


def _picture_size(data: bytes, extension: str) -> tuple[int, int] | None:
    """(width, height) as stored, from the first bytes of a file; None if they do not tell."""
    file = io.BytesIO(data)
    try:
        if extension == "npy":
            shape, _ = read_npy_header(file)
            if len(shape) == 3:  # (C, H, W) or (H, W, C): the smaller of the outer sides counts channels
                shape = shape[1:] if shape[0] <= shape[2] else shape[:2]
            return (shape[1], shape[0]) if len(shape) == 2 else None
        with decoding(), Image.open(file, formats=("JPEG", "PNG", "WEBP", "TIFF")) as image:
            return image.width, image.height
    except BrokenImage:  # reading the whole picture will tell the reason
        return None
