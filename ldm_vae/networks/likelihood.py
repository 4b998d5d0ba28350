"""What a decoder's output says about pixels."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Likelihood(Protocol):
    """A distribution of pixels, under parameters that a decoder gives.

    Where its density is asked for, it also has `log_prob(parameters, target) -> (B,)` in nats; a picture has none.
    """

    def channels(self, image_channels: int) -> int:
        """Channels of the decoder's output."""

    def mean(self, parameters: Tensor) -> Tensor:
        """(B, P, H, W) -> (B, C, H, W), the picture, in [-1, 1] for a decoder that has learned it."""


class PlainPicture:
    """The decoder gives the picture itself; what a deviation costs is up to the losses."""

    def channels(self, image_channels: int) -> int:
        return image_channels

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters
