"""A random sample of bounded size from a stream of any length; every row is equally likely to be in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ldm_vae.noise import rng

Rows = npt.NDArray[Any]


class BoundedSample:
    """Every row draws a random number; the rows with the smallest numbers are kept, in the order of the stream.

    Which rows are kept depends on the seed and on the stream alone, not on how the stream is cut into batches.
    """

    def __init__(self, limit: int, seed: int, purpose: str) -> None:
        """limit: number of rows that are kept at most.
        purpose: a name that gives each sample with the same seed its own random numbers.
        """
        self.limit = limit
        self.rows: Rows | None = None  # None until the first row
        self._generator = rng(seed, purpose)
        self._priorities: npt.NDArray[np.float64] = np.empty(0)

    def offer(self, rows: Rows) -> None:
        """rows: (N, ...), the next rows of the stream."""
        priorities = np.concatenate([self._priorities, self._generator.random(len(rows))])
        rows = rows if self.rows is None else np.concatenate([self.rows, rows])
        if len(rows) > self.limit:
            kept = np.sort(np.argpartition(priorities, self.limit)[: self.limit])
            rows, priorities = rows[kept], priorities[kept]
        self.rows, self._priorities = rows, priorities

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)
