"""From one value per image to the scalar that is minimised."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

Bound = Literal["elbo", "iwae"]


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

    def __init__(self, samples: int = 1) -> None:
        self.samples = samples

    def __call__(self, values: Tensor, total: Tensor) -> Tensor:
        return values.mean()


class ImportanceWeighted:
    """The mean over images of the samples' weighted mean, with importance weights.

    The total of a sample k is -log w_k, w_k = p(x, z_k) / q(z_k | x). The gradient of -log(mean_k w_k), the bound of K
    samples, is that of the totals, weighted by w_k / sum_j w_j.
    Source: Burda et al. 2016, arXiv:1509.00519, eq. 14.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __call__(self, values: Tensor, total: Tensor) -> Tensor:
        weights = torch.softmax(-total.view(-1, self.samples), dim=1)
        return (weights * values.view(-1, self.samples)).sum(dim=1).mean()


def reduction_of(bound: Bound, samples: int) -> Reduction:
    """The reduction whose gradient is that of a bound of so many samples."""
    return ImportanceWeighted(samples) if bound == "iwae" else Mean(samples)
