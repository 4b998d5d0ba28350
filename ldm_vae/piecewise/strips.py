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
    """A tensor (1, C, H, W) as consecutive strips, on the device that computes them.

    axis: the axis that is cut: 2 for rows of pixels, 3 for columns, which are called rows here too.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self._pieces: list[tuple[int, int, Tensor]] = []  # first row, end row, strip

    def append(self, strip: Tensor) -> None:
        """Adds the rows that follow."""
        self._keep(strip, strip.shape[self.axis])

    def read(self, first: int, end: int) -> Tensor:
        """Rows [first, end): one whole strip is returned itself, anything else is copied."""
        touched = list(self._touched(first, end))
        if len(touched) == 1 and touched[0][1:] == (0, touched[0][0].shape[self.axis]):
            return touched[0][0]
        return torch.cat([strip.narrow(self.axis, low, high - low) for strip, low, high in touched], dim=self.axis)

    def release(self, before: int) -> None:
        """Frees the strips that end before row `before`."""
        self._pieces = [piece for piece in self._pieces if piece[1] > before]

    def _keep(self, strip: Tensor, rows: int) -> None:
        first = self._pieces[-1][1] if self._pieces else 0
        self._pieces.append((first, first + rows, strip))

    def _touched(self, first: int, end: int) -> Iterator[tuple[Tensor, int, int]]:
        """Each strip that has some of the rows [first, end), and where they begin and end in it."""
        for start, stop, strip in self._pieces:
            if start < end and first < stop:
                yield strip, max(start, first) - start, min(stop, end) - start


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
