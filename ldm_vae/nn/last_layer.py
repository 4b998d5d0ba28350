"""What an encoder or a decoder returns: input and output of its last layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LastLayer(NamedTuple):
    """Input and output of a network's last layer.

    below: the input.
    output: the output.
    """

    below: Tensor
    output: Tensor
