"""A view: a change of a picture, and the change of its latent that goes with it. Which one a training step takes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class View(Protocol):
    """A change of a picture that has a counterpart in latent space, such as a quarter turn or a scaling."""

    def image(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> the target of the view."""

    def latent(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> what the decoder is given for it."""


class Views(Protocol):
    """Chooses the view of a step."""

    def __call__(self, step: int, generator: np.random.Generator) -> View | None:
        """The view of a step; None takes the images as they are.

        generator: draws the same numbers on all processes, so that they take the same view.
        """


def no_view(step: int, generator: np.random.Generator) -> View | None:
    """Every step takes the images as they are."""
    return None
