"""Gradient checkpointing: trade a second forward pass of a block for its activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """block(x); with `checkpointing`, its activations are recomputed in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)
