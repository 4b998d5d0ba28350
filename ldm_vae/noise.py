"""Random numbers: each is a function of the seed and of its purpose, and none comes from a global generator."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ldm_vae.transfer import to_device


def rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one random choice. Equal arguments give equal draws on any machine, others independent ones.

    seed, numbers: integers in [0, 2^64).
    purpose: what is chosen. It keeps choices with equal numbers apart.
    The generator is Philox (Salmon et al. 2011); numpy's SeedSequence hashes its key from all arguments.
    """
    # Two words for each number, after the count of numbers: no two lists of numbers become the same words.
    words = [zlib.crc32(purpose.encode()), len(numbers)]
    for number in (seed, *numbers):
        words += [number & 0xFFFFFFFF, number >> 32]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


class Noise(Protocol):
    """The source of a forward pass's random numbers.

    purpose: what they are for. Equal purposes give equal numbers.
    like: a tensor (B, ...) whose shape, type and device the numbers get.
    """

    def normal(self, purpose: str, like: Tensor) -> Tensor:
        """Draws from N(0, 1)."""

    def uniform(self, purpose: str, like: Tensor) -> Tensor:
        """Draws from [0, 1)."""

    def shared(self, purpose: str) -> np.random.Generator:
        """A generator for what the whole batch has in common: the same on all processes."""


@dataclass(frozen=True)
class SlotNoise:
    """The noise of a training step: each row is a function of seed, step and slot alone.

    So an image meets the same noise on any number of processes, and however the batch is cut into micro-batches.

    seed: seed of the run.
    step: optimizer step.
    slot: (B,), the images' places in the global batch. Where `like` has K rows for each image, one after the other,
    each of the K rows gets numbers of its own.
    """

    seed: int
    step: int
    slot: Sequence[int] | Tensor

    def normal(self, purpose: str, like: Tensor) -> Tensor:
        return self._rows(purpose, like, lambda row, shape: row.standard_normal(shape, dtype=np.float32))

    def uniform(self, purpose: str, like: Tensor) -> Tensor:
        return self._rows(purpose, like, lambda row, shape: row.random(shape, dtype=np.float32))

    def shared(self, purpose: str) -> np.random.Generator:
        return rng(self.seed, purpose, self.step)

    def seed_torch(self) -> None:
        """Seeds torch's own generators, from which dropout and libraries draw."""
        torch.manual_seed(int(rng(self.seed, "torch", self.step, int(self.slot[0])).integers(2**63)))

    def _rows(self, purpose: str, like: Tensor, draw: Callable[[np.random.Generator, tuple[int, ...]], Any]) -> Tensor:
        samples, rest = divmod(len(like), len(self.slot))
        if rest:
            raise ValueError(f"{len(like)} rows for {len(self.slot)} images")
        shape = tuple(like.shape[1:])
        rows = [
            draw(rng(self.seed, purpose, self.step, int(slot), *([k] if k else [])), shape)
            for slot in self.slot
            for k in range(samples)
        ]
        return to_device(torch.from_numpy(np.stack(rows)), like.device, like.dtype)


@dataclass(frozen=True)
class GivenNoise:
    """Normal noise that the caller has drawn already.

    value: (B, ...), in the shape that the network will ask for.
    """

    value: Tensor

    def normal(self, purpose: str, like: Tensor) -> Tensor:
        return to_device(self.value, like.device, like.dtype)

    def uniform(self, purpose: str, like: Tensor) -> Tensor:
        raise ValueError("only normal noise is given")

    def shared(self, purpose: str) -> np.random.Generator:
        raise ValueError("only normal noise is given")
