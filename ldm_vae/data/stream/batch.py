"""What a training step receives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The images of one rank for one forward pass.

    image: (B, C, H, W) float32 in [-1, 1].
    label: None, int64 (B,) or float (B, K).
    key: names of the B samples.
    slot: (B,) int64, the place of each sample in the global batch. It stays on the CPU, where noise is drawn.
    """

    image: Tensor
    label: Tensor | None
    key: list[str]
    slot: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """The same batch with image (as `dtype`) and label on `device`."""
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        return replace(self, image=self.image.to(device, dtype, non_blocking=True), label=label)
