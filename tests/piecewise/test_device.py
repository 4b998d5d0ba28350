"""Pieces on a GPU, as a device that pretends to be one counts them: kernels, waits, bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.piecewise.conftest import build
from tests.piecewise.on_device import SMALL
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).resolve().parents[2]
BEYOND = 2**20  # bytes beside a plan's bound: statistics of norms, each in a block of its own
FULL = ("decode bfloat16", "encode bfloat16", "decode float32", "encode float32")


def scene(name: str, folder: Path) -> Path:
    """What a scene of `on_device` wrote, run in a process of its own."""
    file = folder / name
    command = [sys.executable, "-m", "tests.piecewise.on_device", name, str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scene("counts", tmp_path_factory.mktemp("device")).read_text())
    return found


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(scene("values", tmp_path_factory.mktemp("device")))
    return found


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scene("rooms", tmp_path_factory.mktemp("device")).read_text())
    return found


@pytest.mark.parametrize("kind", FULL)
def test_pieces_of_a_megapixel_wait_for_nothing_and_start_few_kernels(counts: dict[str, Any], kind: str) -> None:
    pieces, whole = counts[f"pieces {kind}"], counts[f"whole {kind}"]
    assert pieces["strips"] > 1 and pieces["work"] == 1.0 and not pieces["spill"]
    assert pieces["waits"] == pieces["pageable"] == {}
    # Some 12 for each layer and strip; with strips of a CPU's size it was 19,125 for decoding.
    assert pieces["kernels"] < 3.2 * pieces["strips"] * whole["kernels"] + 500
    assert pieces["peak"] <= pieces["bound"] + BEYOND
    assert pieces["peak"] < 0.85 * whole["peak"]
    assert pieces["moved"] < 2**16  # shares of strips in a norm's statistics, and nothing else


def test_a_bound_computes_again_before_anything_moves_to_the_host(counts: dict[str, Any]) -> None:
    bounded = counts["bounded"]
    assert bounded["strips"] > 1 and bounded["work"] > 1.0 and not bounded["spill"]
    assert bounded["waits"] == bounded["pageable"] == {} and bounded["moved"] < 2**16
    assert bounded["peak"] <= bounded["bound"] + BEYOND
    assert bounded["kernels"] < 5000


@pytest.mark.parametrize("kind", ["plain", "again", "spilled"])
@pytest.mark.parametrize("way", ["decode", "encode"])
def test_values_are_those_of_the_whole_pass(values: dict[str, torch.Tensor], way: str, kind: str) -> None:
    strips, spilled, waits, moved = values[f"{way} {kind} plan"].tolist()
    assert strips > 1 and waits == 0
    assert bool(spilled) == (kind == "spilled") and (moved > 2**20) == (kind == "spilled")
    model = build(SMALL)
    run, x = getattr(model, way), values[f"{way} given"]
    with torch.no_grad():
        whole, exact = run(x), getattr(double(model), way)(x.double())
    assert_as_exact(values[f"{way} {kind}"], whole, exact)


@pytest.mark.parametrize(
    ("gibibytes", "batches"),
    [("80.0", [8]), ("24.0", [4, 4]), ("5.0", [])],  # all at once, whole pictures fewer at a time, in pieces
)
def test_a_batch_of_megapixels_takes_what_the_card_has_room_for(
    rooms: dict[str, Any], gibibytes: str, batches: list[int]
) -> None:
    assert rooms[gibibytes]["batches"] == batches
    assert rooms[gibibytes]["refusal"] is None and rooms[gibibytes]["waits"] == {}
    assert rooms[gibibytes]["left"] > 0.2 * float(gibibytes) * 2**30  # for what convolution libraries copy


def test_a_picture_that_no_way_has_room_for_is_refused_in_a_line(rooms: dict[str, Any]) -> None:
    refusal = rooms["0.05"]["refusal"]
    assert refusal.startswith("53,687,091 bytes of free memory on gpu:0: decoding 125 x 125 latents takes at least ")
    assert "\n" not in refusal
