"""Keeps features of images on disk: each process writes its own, and the first process sorts all of them by key.

So memory does not grow with the number of images, and the result depends neither on the order of the images nor on the
number of processes. The files vanish with the program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ldm_vae.atomic import NO_ROOM
from ldm_vae.errors import UserError
from ldm_vae.ranks import all_gather, rank_and_world

Features = npt.NDArray[np.float32]
FloatT = TypeVar("FloatT", bound=np.floating[Any])
CHUNK_IMAGES = 256  # images whose features are in memory at a time


class Spool:
    """Rows of float32 of one shape, each with a key, in a file in $TMPDIR; every process has its own."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.keys: list[str] = []
        self._file = _file()

    def add(self, keys: Sequence[str], rows: Features) -> None:
        """Appends rows (B, *shape)."""
        assert rows.shape == (len(keys), *self.shape)
        _append(self._file, np.ascontiguousarray(rows, dtype=np.float32))
        self.keys += keys

    def gathered(self) -> Features | None:
        """All rows of all processes, (N, *shape), in the order of their keys, mapped from a file. All must call this.

        The first process gets them; the others get None.
        """
        rank, _ = rank_and_world()
        everyone = all_gather(self.keys)
        order = sorted((key, owner, i) for owner, keys in enumerate(everyone) for i, key in enumerate(keys))
        places = [np.empty(len(keys), dtype=np.int64) for keys in everyone]
        for place, (_, owner, i) in enumerate(order):
            places[owner][i] = place
        whole = _file()
        for first in range(0, max(map(len, everyone)), CHUNK_IMAGES):
            for owner, rows in enumerate(all_gather(self._read(first, first + CHUNK_IMAGES))):
                if rank == 0:
                    for place, row in zip(places[owner][first : first + CHUNK_IMAGES], rows, strict=True):
                        whole.seek(int(place) * row.nbytes)
                        _append(whole, row)
        if rank != 0:
            return None
        whole.flush()
        return np.memmap(whole, dtype=np.float32, mode="r+", shape=(len(order), *self.shape))

    def _read(self, first: int, stop: int) -> Features:
        row = 4 * int(np.prod(self.shape))
        self._file.flush()
        self._file.seek(first * row)
        data = self._file.read(max(0, min(stop, len(self.keys)) - first) * row)
        return np.frombuffer(data, dtype=np.float32).reshape(-1, *self.shape)


def chunks(rows: npt.NDArray[FloatT]) -> Iterator[npt.NDArray[FloatT]]:
    """Cuts (n, ...) into parts of at most CHUNK_IMAGES rows, which are read into memory."""
    for first in range(0, len(rows), CHUNK_IMAGES):
        yield np.array(rows[first : first + CHUNK_IMAGES])


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="ldm_vae-features-")


def _append(file: IO[Any], rows: Features) -> None:
    try:
        file.write(rows.tobytes())
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        what = f"no room for features of images in {tempfile.gettempdir()}"
        raise UserError(what, f"{error.strerror}; set TMPDIR to a folder with room") from error
