"""Numbers that change over a run: pure functions of the optimizer step, the same on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Callable[[int], float]
Decay = Literal["constant", "linear", "cosine"]


def ramp(step: int, start: int, length: int) -> float:
    """0 before `start`, then a linear rise to 1 over `length` steps. With a length of 0 it is 1 from `start` on."""
    if step < start:
        return 0.0
    return min((step - start) / length, 1.0) if length else 1.0


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
