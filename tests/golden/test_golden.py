"""The golden recipes still give the stored rows, and the golden codec the stored moments and pixels.

They run in float64, because in float32 no tolerance would mean anything: the gradient of the L1 loss is a sign, that of
a ReLU a step, and Adam makes a full step of a gradient that is nearly 0. After 20 steps two processors differ by 1e-2
in the losses of float32, and by half in what the discriminator says. In float64 they differ at first as the float32
draws of weights and noise do, by 1e-8, and by 1e-4 at most in the end. This was measured with ATEN_CPU_CAPABILITY at
default and avx2, ONEDNN_MAX_CPU_ISA at SSE41 and AVX2, on one and two threads. `make golden BASE=COMMIT` compares
float32 on one machine, bit for bit.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tools.golden import RECIPES, ROWS, differences_of, differences_of_rows, read_rows, run

# Ten times what was measured. The accuracy counts patches, of which the demo's discriminator sees 32.
RELATIVE, ABSOLUTE, ONE_PATCH = 1e-3, 1e-6, 1 / 32


@pytest.mark.parametrize("name", RECIPES)
def test_rows_are_the_stored_ones(name: str, tmp_path: Path) -> None:
    found = read_rows(run(ROOT, name, tmp_path / name, "precision=float64") / "metrics.jsonl")
    stored = read_rows(ROWS / f"{name}.jsonl")
    assert [(row["step"], row.keys()) for row in found] == [(row["step"], row.keys()) for row in stored]
    for ours, theirs in zip(found, stored, strict=True):
        for key, value in theirs.items():
            absolute = ONE_PATCH if key == "discriminator_accuracy" else ABSOLUTE
            assert math.isclose(ours[key], value, rel_tol=RELATIVE, abs_tol=absolute), (theirs["step"], key)


def test_float32_follows_the_stored_rows(tmp_path: Path) -> None:
    """The losses that no discriminator takes part in, of the run whose float32 strays furthest: by 0.9 %."""
    found = read_rows(run(ROOT, "demo", tmp_path / "demo") / "metrics.jsonl")
    for ours, theirs in zip(found, read_rows(ROWS / "demo.jsonl"), strict=True):
        for key in theirs.keys() & {"pixel", "perceptual", "rate"}:
            assert ours[key] == pytest.approx(theirs[key], rel=0.03), (theirs["step"], key)


def test_moments_and_pixels_are_the_stored_ones(tmp_path: Path) -> None:
    """Float64, which the file holds rounded to float32; and float32, after the rounding of some 30 layers. A sample's
    noise is another one in float32."""
    stored, found = load_file(ROWS / "codec.safetensors"), load_file(run(ROOT, "codec", tmp_path / "codec"))
    assert {f"{name.removesuffix('64')}{bits}" for name in stored for bits in (32, 64)} == found.keys()
    for name, expected in stored.items():
        size = expected.abs().max().item()
        torch.testing.assert_close(found[name].float(), expected, rtol=0, atol=1e-6 * size)
        if not name.startswith("sample"):
            torch.testing.assert_close(found[name.replace("64", "32")], expected, rtol=0, atol=1e-4 * size)


def test_a_difference_in_the_last_bit_is_told(tmp_path: Path) -> None:
    rows = [{"step": step, "pixel": 0.5} for step in range(1, 6)]
    moved = [row | {"pixel": math.nextafter(0.5, 1)} if row["step"] > 3 else row for row in rows]
    assert list(differences_of_rows(rows, rows)) == []
    (told,) = differences_of_rows(rows, moved)
    assert told == "pixel from step 4 on: 0.5 and 0.5000000000000001"
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    save_file(tensors, tmp_path / "first")
    save_file(tensors | {"b": torch.tensor([0.0, 0.0, -0.0])}, tmp_path / "second")
    assert list(differences_of(tmp_path / "first", tmp_path / "first")) == []
    assert [*differences_of(tmp_path / "first", tmp_path / "second")] == [
        "first: 1 of 2 tensors differ, such as b (largest difference 0)"
    ]
