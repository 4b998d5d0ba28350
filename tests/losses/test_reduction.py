"""Importance weights: the gradient of the bound by brute force, one sample is the ELBO, and more samples raise it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_vae.losses.reduction import ImportanceWeighted, Mean, reduction_of

pytestmark = pytest.mark.numerical


def rows(parameters: Tensor) -> dict[str, Tensor]:
    """Two terms of 4 images with 3 samples each, from 5 parameters."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    first, second = (features @ parameters).square()
    return {"likelihood": first, "rate": second}


def test_the_gradient_is_that_of_the_bound() -> None:
    parameters = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    terms = rows(parameters)
    total = sum(terms.values(), torch.zeros(())).detach()
    reduction = ImportanceWeighted(3)
    loss = sum((reduction(value, total) for value in terms.values()), torch.zeros(()))
    (ours,) = torch.autograd.grad(loss, [parameters])

    whole = sum(rows(parameters).values(), torch.zeros(())).view(4, 3)
    bound = torch.log(torch.exp(-whole).mean(dim=1)).mean()
    (theirs,) = torch.autograd.grad(-bound, [parameters])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (mean,) = torch.autograd.grad(Mean(3)(rows(parameters)["rate"], total), [parameters])
    assert not torch.allclose(ours, mean)


def test_one_sample_is_the_mean() -> None:
    values, total = torch.arange(4.0), torch.arange(4.0) * 100
    assert reduction_of("iwae", 1)(values, total) == reduction_of("elbo", 1)(values, total) == values.mean()
    assert reduction_of("iwae", 7).samples == reduction_of("elbo", 7).samples == 7


def test_huge_totals_do_not_overflow() -> None:
    """Nats of a picture: exp(-5000) is 0, and exp(5000) infinite, even in float64."""
    total = torch.tensor([5000.0, 5001.0, -5000.0, -5002.0])
    expected = (5000 / (1 + math.exp(-1)) + 5001 / (1 + math.exp(1))) / 2
    expected += (-5000 / (1 + math.exp(2)) - 5002 / (1 + math.exp(-2))) / 2
    assert float(ImportanceWeighted(2)(total, total)) == pytest.approx(expected, abs=1e-3)
