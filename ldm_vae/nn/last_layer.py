"""What an encoder or a decoder gives: its output, and what its last layer made it of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LastLayer(NamedTuple):
    """The two sides of a last layer.

    below: its input.
    output: its output.
    """

    below: Tensor
    output: Tensor
