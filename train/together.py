"""What the processes tell each other at one moment, in one collective: each has a price of its own, however little."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


def gather_together(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Tensors of any types, (...) -> (ranks, ...) each, where it is. All ranks must call.

    All ranks give tensors of the same names, shapes and types. Their bytes travel, so no value is rounded, also on a
    device that has not their type.
    """
    if accelerator.num_processes == 1:
        return {name: tensor[None] for name, tensor in tensors.items()}
    flat = [tensor.contiguous().view(-1).view(torch.uint8).to(accelerator.device) for tensor in tensors.values()]
    gathered: Tensor = accelerator.gather(torch.cat(flat)[None])
    parts = torch.split(gathered, [part.numel() for part in flat], dim=1)
    return {
        name: part.to(tensor.device).contiguous().view(tensor.dtype).view(accelerator.num_processes, *tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }
