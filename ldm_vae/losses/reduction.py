"""From one value per image to the scalar that is minimised."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Reduction(Protocol):
    """Turns one value per row into a scalar. A row is an image, or one of its samples.

    samples: number of rows for each image, one after the other: draws from the posterior.
    """

    samples: int

    def __call__(self, values: Tensor, total: Tensor) -> Tensor:
        """One value per row -> a scalar, linear in `values`.

        values: (B * samples,), values of one term.
        total: (B * samples,), weighted sum of all terms, without a graph. The weights of rows may depend on it.
        """


class Mean:
    """The mean over all rows."""

    samples = 1

    def __call__(self, values: Tensor, total: Tensor) -> Tensor:
        return values.mean()
