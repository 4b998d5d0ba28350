"""Group normalisation, and what else may keep the type of what it reads where autocast would make it float32.

CUDA's autocast lists group norms and resampling for float32. So a network in bfloat16 keeps float32 copies of almost
all its activations: what a norm reads, for the norm's own gradient, and what it writes, for that of the activation
after it. Kernels compute the statistics of a half type in float32 anyway, and the convolution that comes next rounds.
What this saves, and what it changes: configs/RESULTS.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.precision import without_autocast

HALF = (torch.bfloat16, torch.float16)


class TypeKeeper:
    """A module that may compute in the type of what it reads, whatever autocast says.

    keeps_type: whether it does so for half types.
    """

    keeps_type = False

    def typing(self, x: Tensor) -> AbstractContextManager[object]:
        """The context for what autocast would compute in float32."""
        return without_autocast(x.device) if self.keeps_type and x.dtype in HALF else nullcontext()


class GroupNorm(TypeKeeper, nn.GroupNorm):
    """PyTorch's, with the same parameters; autocast rounds those of convolutions to a half type, this its own."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.keeps_type:
            return super().forward(x)
        with self.typing(x):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def keep_types(network: nn.Module) -> None:
    """Lets all modules of a network that may do so keep the type of what they read."""
    for module in network.modules():
        if isinstance(module, TypeKeeper):
            module.keeps_type = True
