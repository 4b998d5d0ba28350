"""Numbers that change over a run: pure functions of the optimizer step, the same on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Callable[[int], float]
Decay = Literal["constant", "linear", "cosine"]
Rise = Literal["constant", "linear", "sigmoid", "cosine", "cyclical"]


def ramp(step: int, start: int, length: int) -> float:
    """0 before `start`, then a linear rise to 1 over `length` steps. With a length of 0 it is 1 from `start` on."""
    if step < start:
        return 0.0
    return min((step - start) / length, 1.0) if length else 1.0


def rise(step: int, *, shape: Rise, length: int, cycles: int, rising: float) -> float:
    """A rise from 0 to 1, in [0, 1]: 0 at step 0 and 1 from `length` on; constant is 1 from the start.

    length: number of steps of the rise; 0 is none, and the value 1.
    cycles, rising: of cyclical: it rises so often, linearly and each time anew from 0, over this share of a cycle of
    length / cycles steps, and stays at 1 for the rest of the cycle.
    Source: linear and sigmoid Bowman et al. 2016, arXiv:1511.06349, section 3.1, here with a sigmoid of 12 (p - 1/2)
    that is stretched to reach 0 and 1; cyclical Fu et al. 2019, arXiv:1903.10145.
    """
    progress = ramp(step, 0, length)
    if progress == 1.0 or shape == "constant":
        return 1.0
    if shape == "sigmoid":
        return 0.5 + math.tanh(6.0 * (progress - 0.5)) / (2.0 * math.tanh(3.0))
    if shape == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * progress))
    if shape == "cyclical":  # the remainder is of integers: a cycle begins exactly at 0
        return min((step * cycles % length) / length / rising, 1.0)
    return progress


def warmup_decay(step: int, *, warmup: int, decay: Decay, final: float, steps: int) -> float:
    """The factor on a learning rate: a linear warm-up, then a decay from 1 to `final`.

    warmup: number of steps of the warm-up.
    steps: number of all steps; the factor is `final` at the last one.
    """
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    shape = 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final + (1.0 - final) * shape
