"""What every bottleneck returns, so that losses and the codec need not know which one it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Latent:
    """z: (B, C, h, w), raw (unscaled).    rate: (B,), nats per image.
    stats: what the bottleneck knows about its distribution, by name (the Gaussian: "mean" and "logvar")."""

    z: Tensor
    rate: Tensor
    stats: Mapping[str, Tensor]
