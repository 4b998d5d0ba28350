"""Small shards whose pixels tell which sample they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from ldm_vae.data.shards.storage import RangeReader
from tests import conftest

WriteTar = Callable[[Path, Mapping[str, bytes]], Path]
ReadRange = Callable[[str, int, int], bytes]


class MakeShards(Protocol):
    """What the fixture `make_shards` gives."""

    def __call__(self, folder: Path, counts: Sequence[int], *, side: int = 4, labelled: bool = True) -> Path: ...


@pytest.fixture
def write_tar() -> WriteTar:
    """(path, name -> content) -> path of a tar with these members."""
    return conftest.write_tar


@pytest.fixture
def read_range() -> Iterator[ReadRange]:
    """(path or URL, offset, size) -> the bytes there."""
    with closing(RangeReader()) as reader:
        yield reader.read


@pytest.fixture
def make_shards() -> MakeShards:
    """(folder, samples of each shard) -> folder of shards. Sample n of all has key s<n>, cls n, and the colour of n."""
    return _make_shards


def _make_shards(folder: Path, counts: Sequence[int], *, side: int = 4, labelled: bool = True) -> Path:
    number = 0
    for shard, count in enumerate(counts):
        members: dict[str, bytes] = {}
        for _ in range(count):
            members[f"s{number:06d}.png"] = _picture(number, side)
            if labelled:
                members[f"s{number:06d}.cls"] = str(number).encode()
            number += 1
        conftest.write_tar(folder / f"{shard:06d}.tar", members)
    return folder


def _picture(number: int, side: int) -> bytes:
    """Red and green are the two bytes of the number; blue grows from left to right and shows crop and flip."""
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = number // 256, number % 256, np.arange(side)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
