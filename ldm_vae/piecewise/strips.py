"""A tensor held as strips, so that parts of it can be freed while the next one grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def cuts(rows: int, strips: int) -> Iterator[tuple[int, int]]:
    """Bounds [first, end) of `rows` cut into `strips` pieces of nearly equal size; empty ones are left out."""
    for i in range(strips):
        first, end = i * rows // strips, (i + 1) * rows // strips
        if first < end:
            yield first, end


class Strips:
    """A tensor (1, C, H, W) as consecutive strips.

    axis: the axis that is cut: 2 for rows of pixels, 3 for columns, which are called rows here too.
    home: the device that holds the strips; None: the one that computes. Strips are read back to the one that computes.
    """

    def __init__(self, axis: int, home: torch.device | None = None) -> None:
        self.axis = axis
        self.home = home
        self._pieces: list[tuple[int, int, Tensor]] = []  # first row, end row, strip
        self._device = torch.device("cpu")

    def append(self, strip: Tensor) -> None:
        """Adds the rows that follow."""
        first = self._pieces[-1][1] if self._pieces else 0
        self._device = strip.device
        self._pieces.append((first, first + strip.shape[self.axis], strip.to(self.home or strip.device)))

    def read(self, first: int, end: int) -> Tensor:
        """Rows [first, end): one whole strip is returned itself, anything else is copied."""
        touched = [piece for piece in self._pieces if piece[0] < end and first < piece[1]]
        if len(touched) == 1 and touched[0][:2] == (first, end):
            return touched[0][2].to(self._device)
        parts = []
        for start, stop, strip in touched:
            low, high = max(start, first), min(stop, end)
            parts.append(strip.narrow(self.axis, low - start, high - low).to(self._device))
        return torch.cat(parts, dim=self.axis)

    def release(self, before: int) -> None:
        """Frees the strips that end before row `before`."""
        self._pieces = [piece for piece in self._pieces if piece[1] > before]


class Whole:
    """The input or the output: a tensor that is in memory all the time, and read without a copy.

    finish: what is done to each strip before it is written; None writes it as it is.
    """

    def __init__(self, axis: int, tensor: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> None:
        self.axis, self.tensor, self.finish, self._written = axis, tensor, finish, 0

    def append(self, strip: Tensor) -> None:
        """Writes the rows that follow those already written."""
        rows = strip.shape[self.axis]
        written = strip if self.finish is None else self.finish(strip)
        self.tensor.narrow(self.axis, self._written, rows).copy_(written)
        self._written += rows

    def read(self, first: int, end: int) -> Tensor:
        """Rows [first, end)."""
        return self.tensor.narrow(self.axis, first, end - first)

    def release(self, before: int) -> None:
        """Nothing to free."""
