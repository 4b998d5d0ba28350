"""A controlled rate is part of a run like any loss: two processes equal one, and a resumed run is bitwise the other."""

import json
from pathlib import Path

import pytest

from ldm_vae.recipe import load_recipe
from tests.train.conftest import Holds
from train.recipe import Recipe


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing: every recipe knows the controls."""


def _rows(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "rate" in row]


def test_print(holds: Holds, tmp_path: Path) -> None:
    holds("loss.rate={weight: 0.1, free_nats: 1}")
    print([(row["rate"], row["charged_rate"]) for row in _rows(tmp_path / "one")])
    assert 0
