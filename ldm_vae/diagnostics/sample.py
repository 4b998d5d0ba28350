"""A bounded sample of a stream: every row is as likely to be in it as any other, however long the stream is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ldm_vae.noise import rng

Rows = npt.NDArray[Any]


class BoundedSample:
    """The rows with the smallest of independent random numbers, in the order of the stream.

    Which rows those are depends on the seed and on the stream alone, not on how it was cut into batches.
    """

    def __init__(self, limit: int, seed: int, purpose: str) -> None:
        """limit: rows kept at most.   purpose: keeps samples of one seed apart."""
        self.limit = limit
        self.rows: Rows | None = None  # None until the first row
        self._generator = rng(seed, purpose)
        self._priorities: npt.NDArray[np.float64] = np.empty(0)

    def offer(self, rows: Rows) -> None:
        """rows: (N, ...), the next of the stream."""
        priorities = np.concatenate([self._priorities, self._generator.random(len(rows))])
        rows = rows if self.rows is None else np.concatenate([self.rows, rows])
        if len(rows) > self.limit:
            kept = np.sort(np.argpartition(priorities, self.limit)[: self.limit])
            rows, priorities = rows[kept], priorities[kept]
        self.rows, self._priorities = rows, priorities

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)
