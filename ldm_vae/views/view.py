"""What a view is, and which one a step of training takes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class View(Protocol):
    """A change of picture that has a counterpart in latent space (a quarter turn, a scaling)."""

    def image(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> the target of the view."""

    def latent(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> what the decoder is given for it."""


class Views(Protocol):
    """Chooses the view of a step."""

    def __call__(self, step: int, generator: np.random.Generator) -> View | None:
        """generator: the same on all processes, so that they take the same view. None: the images as they are."""


def no_view(step: int, generator: np.random.Generator) -> View | None:
    """Every step takes the images as they are."""
    return None
