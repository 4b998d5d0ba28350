"""How a decoder's output is read: as a picture, or as the parameters of a distribution of pixels."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Likelihood(Protocol):
    """The distribution of pixels whose parameters a decoder outputs."""

    def channels(self, image_channels: int) -> int:
        """Channels of the decoder's output for images of `image_channels` channels."""

    def mean(self, parameters: Tensor) -> Tensor:
        """Parameters (B, P, H, W) -> the picture (B, C, H, W); a trained decoder gives values in [-1, 1].

        Each pixel depends on its own parameters alone, so that a picture that is decoded in pieces is the same.
        """


class Density(Likelihood, Protocol):
    """A likelihood that tells how likely an image is."""

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """(B,), nats, summed over the values of an image.

        target: (B, C, H, W), images.
        """


class PlainPicture:
    """The decoder outputs the picture itself; the losses decide what a deviation costs."""

    def channels(self, image_channels: int) -> int:
        return image_channels

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters
