"""A controlled rate is part of a run like any loss: two processes equal one, and a resumed run is bitwise the other."""

import json
from pathlib import Path

import pytest

from tests.train.conftest import Build, Holds, batches_of
from train.step import train_step

CYCLES = (
    "weight: 10, schedule: cyclical, warmup: 4, cycles: 2"  # weights of 0, 10, 0, 10, 10, 10; resumed in the middle
)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing: every recipe knows the controls."""


def _rows(run: Path) -> list[tuple[float, float]]:
    """(rate, what is charged) of each step, in nats."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["rate"], row["charged_rate"]) for row in rows if "rate" in row]


def test_free_bits_and_cycles(holds: Holds, tmp_path: Path) -> None:
    holds(f"loss.rate={{{CYCLES}, free_nats: 16}}")  # at first both channels are above it, in the end below
    rows = _rows(tmp_path / "one")
    assert rows[0][1] == pytest.approx(rows[0][0]) and rows[-1][1] == pytest.approx(32.0)
    assert any(32.0 < charged != pytest.approx(rate) for rate, charged in rows)


def test_a_capacity_that_rises(holds: Holds, tmp_path: Path) -> None:
    capacity = 34.4  # between the rates of two processes in the second step
    holds(f"loss.rate={{{CYCLES}, capacity: {capacity}, capacity_warmup: 1}}")
    rows = _rows(tmp_path / "one")
    for step, (rate, charged) in enumerate(rows):
        assert charged == pytest.approx(abs(rate - (capacity if step else 0.0)))
    assert rows[0][0] > 0 and any(rate < capacity for rate, _ in rows[1:])  # the control has pushed and pulled


def test_under_accumulation_the_mean_is_that_of_a_micro_batch(build: Build) -> None:
    settings = ("discriminator=null", "precision=float64", "optimizer.accumulation=2")
    run, recipe = build(*settings)
    micro_batches = batches_of(run, recipe, 1)[0]
    means = [float(run.forward(batch, 0).posterior.rate.mean()) for batch in micro_batches]
    middle = sum(means) / 2
    run, _ = build(*settings, f"loss.rate={{weight: 1, capacity: {middle!r}}}")
    charged = float(train_step(run, micro_batches, 0)["charged_rate"])  # of the whole batch it would be 0
    assert charged == pytest.approx(abs(means[0] - middle)) and charged > 0.01
