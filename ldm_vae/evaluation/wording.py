"""Says in words which of two codecs is better, by how much, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ldm_vae.metrics.descriptions import describe_metric


@dataclass(frozen=True)
class Advantage:
    """Which of two codecs is better in one metric, as a terminal and a page show it.

    words: such as "runs/b better by 0.4 dB".
    interval: such as "0.31 to 0.49": how much better that codec is; negative where the other one is.
    sure: whether it is more than chance.
    """

    words: str
    interval: str
    sure: bool

    def __str__(self) -> str:
        return f"{self.words} ({self.interval})" if self.interval else self.words


def advantage(
    metric: str,
    names: tuple[str, str],
    difference: float,
    interval: tuple[float, float] | None,
    verdict: str,
    write: Callable[[float], str],
) -> Advantage:
    """What the paired difference of two codecs means.

    names: of both.
    difference, interval: values of the first codec minus those of the other, as in evaluation/compare.py.
    verdict: of `PairedDifference.verdict`; empty in older files.
    write: turns a difference into text.
    """
    described = describe_metric(metric)
    unit = f" {described.unit}" if described.unit else ""
    if not described.better:
        return Advantage(f"{names[0]} differs by {write(difference)}{unit}", "", False)
    sign = 1 if described.better == "higher" else -1
    leads = sign * difference >= 0
    if not leads:
        sign = -sign
    ends = "" if interval is None else " to ".join(map(write, sorted(sign * end for end in interval)))
    leader, amount = names[0] if leads else names[1], f"{write(abs(difference))}{unit}"
    if difference == 0:
        return Advantage("no difference", ends, False)
    if verdict == "noise":
        return Advantage(f"within chance: {leader} ahead by {amount}", ends, False)
    if verdict == "too few images":
        return Advantage(f"too few images to tell: {leader} ahead by {amount}", ends, False)
    return Advantage(f"{leader} better by {amount}", ends, verdict in ("gain", "loss"))
