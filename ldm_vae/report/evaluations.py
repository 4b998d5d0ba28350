"""Chooses from results.json what is about the weights that a run has now, and says so where there is nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_vae.interop.results import Measurement, StoredResults, comparable, newest_of
from ldm_vae.report.numbers import short
from ldm_vae.report.weights import PresentWeights


@dataclass(frozen=True)
class Evaluations:
    """What was measured on a run.

    current: the newest measurement of its present weights; None where there is none.
    more: other measurements of these weights, on other data or by another protocol.
    earlier: measurements of other weights of this run, the newest first.
    sentence: why there is no current one; empty where there is.
    """

    current: Measurement | None = None
    more: list[Measurement] = field(default_factory=list)
    earlier: list[Measurement] = field(default_factory=list)
    sentence: str = ""


def choose_evaluations(stored: StoredResults, weights: PresentWeights | None) -> Evaluations:
    """The measurements of a results.json, seen from the present weights.

    A file of an earlier version may be about any codec, also where it is an entry by now. So of it only what is of the
    present weights is shown.
    """
    measurements = stored.measurements
    own = [one for one in measurements if one.measured]  # what `ldm-vae evaluate` has kept here
    current = None if weights is None else newest_of(measurements, weights.sha256)
    if current is not None and weights is not None:
        rest = [one for one in measurements if one.weights == weights.sha256 and not comparable(one, current)]
        return Evaluations(current, rest, [one for one in own if one.weights != weights.sha256])
    if stored.ours:
        return Evaluations(earlier=own, sentence=_trained_on(own, weights))
    about = f"{_at(stored.step)} of {stored.protocol.get('model', 'an unknown codec')}"
    now = "no whole checkpoint" if weights is None else f"other weights, {_at(weights.step)}"
    return Evaluations(sentence=f"results.json is about other weights ({about}) and not shown: this run holds {now}.")


def _trained_on(measurements: list[Measurement], weights: PresentWeights | None) -> str:
    last = next((one.step for one in measurements if one.step is not None), None)
    if weights is None:
        return f"The run was measured at {_at(last)}, and holds no whole checkpoint to compare with."
    return f"The run was measured at {_at(last)}, and is at {_at(weights.step)} now: evaluate it again."


def _at(step: int | None) -> str:
    return "an unknown step" if step is None else f"step {short(step)}"
