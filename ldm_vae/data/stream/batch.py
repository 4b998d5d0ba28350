"""What a training step receives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm_vae.transfer import Courier


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

    def __len__(self) -> int:
        return len(self.key)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of each image."""
        return tuple(self.image.shape[1:])

    def part(self, start: int, stop: int) -> Batch:
        """The images from `start` to before `stop`."""
        label = None if self.label is None else self.label[start:stop]
        return Batch(self.image[start:stop], label, self.key[start:stop], self.slot[start:stop])

    def by(self, courier: Courier, dtype: torch.dtype = torch.float32) -> Batch:
        """The same batch with image (as `dtype`) and label on the device of a courier."""
        label = None if self.label is None else courier.bring(self.label)
        return replace(self, image=courier.bring(self.image, dtype), label=label)
