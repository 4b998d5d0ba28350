"""What a training step receives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """image: (B, C, H, W) float32 in [-1, 1].   label: None, int64 (B,) or float (B, K).   key: B names of samples.
    slot: (B,) int64, the places of the samples in the global batch; stays on the CPU, where noise is drawn."""

    image: Tensor
    label: Tensor | None
    key: list[str]
    slot: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """Image (as `dtype`) and label on the device of the networks."""
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        return replace(self, image=self.image.to(device, dtype, non_blocking=True), label=label)
