"""From one value per image to the scalar that is minimised."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Reduction(Protocol):
    """Weights the rows of a batch.

    samples: draws from the posterior per image that the rows hold, one after the other.
    """

    samples: int

    def __call__(self, values: Tensor, total: Tensor) -> Tensor:
        """Rows -> scalar, linear in `values`.

        values: (B * samples,), of one term.
        total: (B * samples,), of all terms together, weighted and without a graph: what weights may depend on.
        """


class Mean:
    """Every image counts alike."""

    samples = 1

    def __call__(self, values: Tensor, total: Tensor) -> Tensor:
        return values.mean()
