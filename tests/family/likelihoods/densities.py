"""Likelihoods by kind, with parameters and noise for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_vae.family.likelihoods.base import Density
from ldm_vae.parts import LIKELIHOODS

CHANNELS = 2  # of all images
ALL: list[dict[str, Any]] = [
    {"kind": "gaussian"},
    {"kind": "gaussian", "variance": "fixed", "std": 0.3},
    {"kind": "gaussian", "variance": "pixel"},
    {"kind": "laplace"},
    {"kind": "laplace", "variance": "pixel"},
    {"kind": "bernoulli"},
    {"kind": "categorical"},
    {"kind": "categorical", "levels": 5},
    {"kind": "logistic"},
    {"kind": "logistic", "variance": "fixed", "std": 0.3, "components": 2},
    {"kind": "logistic", "variance": "shared", "components": 2},
    {"kind": "logistic", "variance": "pixel", "components": 3, "levels": 5},
]


def density(kind: str, **fields: Any) -> Density:
    """The likelihood of images of `CHANNELS` channels that a recipe with these fields asks for."""
    config = LIKELIHOODS.config(kind).model_validate({"kind": kind, **fields})
    built: Density = LIKELIHOODS.part_of(config)(config, CHANNELS)
    return built


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draws from N(0, 1)."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def picture(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """A picture of 8 bits, in [-1, 1]."""
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    return levels.to(dtype) / 127.5 - 1


def output(of: Density, *, batch: int = 3, side: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """What a decoder may give it."""
    return draw(batch, of.channels(CHANNELS), side, side, dtype=dtype)


@dataclass(frozen=True)
class ConstantNoise:
    """A source whose every draw from [0, 1) is the same."""

    value: float

    def normal(self, purpose: str, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def uniform(self, purpose: str, like: Tensor) -> Tensor:
        return torch.full_like(like, self.value)

    def shared(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(0)
