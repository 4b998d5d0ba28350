"""Finding out what is in a shard or a folder of images where no index tells."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_vae.data.images.decode import read_npy_header
from ldm_vae.data.images.pixels import BrokenImage, decoding
from ldm_vae.data.shards.folder import find_samples
from ldm_vae.data.shards.shard import ShardIndex, pack_shard, split_name
from ldm_vae.data.shards.storage import Missing, RangeReader
from ldm_vae.data.shards.tar import BrokenTar, members

SIZE_BYTES = 2**15  # bytes of a picture in which its size nearly always stands
FOLDER_SHARD = 256  # samples of a folder that count as one shard


@dataclass(frozen=True)
class Scan:
    """A shard as its headers tell it. problems: (member or "", reason) of what training would refuse."""

    shard: ShardIndex
    problems: list[tuple[str, str]]


def scan_shard(url: str) -> Scan:
    """Reads the headers of one tar, a few kB a member. Raises Missing or Unreachable."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    problems: list[tuple[str, str]] = []
    previous = None
    with closing(RangeReader()) as reader:
        size = reader.size(url)
        try:
            for member in members(url, reader):
                key, field = split_name(member.name)
                if member.problem is not None:
                    problems.append((member.name, member.problem))
                    continue
                if key in samples and key != previous:
                    problems.append((member.name, "its key appeared before, with others in between"))
                if field in samples.setdefault(key, {}):
                    problems.append((member.name, "the name appears twice"))
                    continue
                samples[key][field] = (member.offset, member.size)
                previous = key
        except BrokenTar as error:
            problems.append(("", str(error)))
    return Scan(pack_shard(url, size, samples), problems)


def scan_folder(folder: Path) -> list[ShardIndex]:
    """The pictures in a folder and below (`data/shards/folder.py`), some hundred at a time as if they were a shard."""
    found, _, _ = find_samples(folder)
    shards = []
    for start in range(0, len(found), FOLDER_SHARD):
        files: list[str] = []
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        for sample in found[start : start + FOLDER_SHARD]:
            samples[sample.key] = {}
            for field, path in sample.files.items():
                samples[sample.key][field] = (len(files), path.stat().st_size)
                files.append(path.relative_to(folder).as_posix())
        total = sum(size for fields in samples.values() for _, size in fields.values())
        shards.append(pack_shard(str(folder), total, samples, tuple(files)))
    return shards


def add_picture_sizes(shard: ShardIndex) -> ShardIndex:
    """With the width and height of every picture, from the pictures' headers."""
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
    """Width and height as stored, from the beginning of a file; None where they are not in it."""
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
