"""A check at every save that all ranks hold the same bits: without it, nobody notices replicas that drift apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Bytes of a value -> the integer type that its bits are read as. Larger values are read as several words of 4 bytes.
WORD_TYPES = {1: torch.uint8, 2: torch.int16}


class RanksDiffer(RuntimeError):
    """Replicas have drifted apart. This is a bug or a fault of a device; a user cannot mend it."""


def bit_sums(tensors: Iterable[Tensor]) -> Tensor:
    """(2,) int64: the sum of the words of all values, and the sum weighted by position. Both wrap around."""
    total = torch.zeros(2, dtype=torch.int64)
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(-1).view(WORD_TYPES.get(tensor.element_size(), torch.int32))
        place = torch.arange(bits.numel(), device=bits.device, dtype=torch.int64)
        bits = bits.to(torch.int64)
        total = total.to(bits.device) + torch.stack([bits.sum(), (bits * place).sum()])
    return total


def sums_of_groups(groups: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> Tensor:
    """(groups, 2) int64 on the device: `bit_sums` of each group."""
    return torch.stack([bit_sums(group.values()).to(device) for group in groups.values()])


def check_ranks_agree(groups: Iterable[str], gathered: Tensor) -> None:
    """Raises RanksDiffer, on all ranks, where one of the groups of tensors differs between ranks.

    groups: their names.
    gathered: (ranks, groups, 2), what `sums_of_groups` returned on all ranks.
    """
    differing = (gathered != gathered[0]).any(dim=0).any(dim=1).tolist()
    for name, differs in zip(groups, differing, strict=True):
        if differs:
            raise RanksDiffer(
                f"ranks hold different values of {name}: this is a fault of ours or of a device, so please report it; "
                "the last checkpoint is whole"
            )
