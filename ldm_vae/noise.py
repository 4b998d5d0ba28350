"""Where every random number comes from: a function of the seed and of what it is for, not of a global generator."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one random choice: the same for the same arguments on any machine, else independent.

    seed, numbers: integers in [0, 2^64).   purpose: what is chosen; it keeps choices with equal numbers apart.
    Philox (Salmon et al. 2011) under a key that numpy's SeedSequence hashes from all of them.
    """
    # Two words a number and their count, so that no two lists of numbers become the same words.
    words = [zlib.crc32(purpose.encode()), len(numbers)]
    for number in (seed, *numbers):
        words += [number & 0xFFFFFFFF, number >> 32]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def slot_noise(seed: int, step: int, slot: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 (B, *shape[1:]), on the CPU; row i depends on (seed, step, slot[i]) alone.

    So a sample meets the same noise on any number of ranks and in any cut into micro-batches.
    """
    rows = [rng(seed, "noise", step, int(s)).standard_normal(tuple(shape[1:]), dtype=np.float32) for s in slot]
    return torch.from_numpy(np.stack(rows))
