"""On a GPU: a step waits for nothing, takes the memory that is counted, and gives what the CPU gives; so does a codec.

`python -m pytest -m gpu` runs these on a card. `make slow` plays them on a device that pretends to be one, with the
arithmetic of a CPU, so that what a card will be asked is known to run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = [pytest.param("gpu", marks=pytest.mark.slow), pytest.param("cuda", marks=CARD)]
ALL_ON = ("discriminator.start=0", "discriminator.generator_start=0", "discriminator.ramp=0")


def play(device: str, work: str, *arguments: object) -> Any:
    command = [sys.executable, str(ROOT / "tests/on_device.py"), device, work, *map(str, arguments)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"} if device == "cpu" else {**os.environ}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_rows_near(ours: list[dict[str, float]], theirs: list[dict[str, float]], relative: float) -> None:
    """Of values near zero, such as a mean of logits, the difference may be as large as of one of size 0.1."""
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one == {name: pytest.approx(value, rel=relative, abs=0.1 * relative) for name, value in other.items()}, (
            step
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("changes", "relative"),
    [
        # Sums in another order, over five steps of Adam, which enlarges what is small: some 1e-12 in float64.
        (["precision=float64"], 1e-8),
        (["precision=float32", "tf32=false", "optimizer.eps=1e-4", "discriminator.order=compvis"], 1e-3),
        (["precision=bfloat16", "norms=bfloat16"], None),  # CUDA rounds elsewhere than the CPU's bfloat16
    ],
    ids=["float64", "float32", "bfloat16"],
)
def test_steps_wait_for_nothing_and_give_the_cpus_values(
    device: str, changes: list[str], relative: float | None, recipe: Path
) -> None:
    """The steps themselves fail where the host waits (tests/on_device.py)."""
    ours = play(device, "steps", recipe, *ALL_ON, *changes)
    assert ours["device"] == device
    if relative is not None:
        assert_rows_near(ours["rows"], play("cpu", "steps", recipe, *ALL_ON, *changes)["rows"], relative)


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_steps_repeat_themselves_bit_for_bit(device: str, recipe: Path) -> None:
    settings = ("deterministic=true", "precision=bfloat16", *ALL_ON)
    first, second = (play(device, "steps", recipe, *settings) for _ in range(2))
    assert first == second
    assert first["weights"] != play(device, "steps", recipe, *settings, "seed=1")["weights"]


@pytest.mark.parametrize("device", DEVICES[1:])
def test_compiled_steps_give_the_values_of_plain_ones(device: str, recipe: Path) -> None:
    settings = ("precision=float32", "tf32=false", "optimizer.eps=1e-4", *ALL_ON)
    compiled = play(device, "steps", recipe, *settings, "compile=true")
    assert_rows_near(compiled["rows"], play(device, "steps", recipe, *settings)["rows"], 1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_takes_the_memory_that_a_dry_run_counts(device: str, recipe: Path) -> None:
    """On a card, within 10 %: libraries' workspaces and the allocator's blocks come on top."""
    found = play(device, "peak", recipe, 8, 128, "precision=float32", *ALL_ON)
    assert found["taken"] == pytest.approx(found["told"], rel=0.1 if device == "cuda" else 0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_a_codec_gives_what_the_cpu_gives_whole_and_in_pieces(device: str) -> None:
    """Float32 without TF32, which would be off by 1e-3; pieces keep to their bound, beside weights and images."""
    found = play(device, "codec", 48)
    images = 2 * 4 * (3 * 512 * 640 + 4 * 128 * 160) + 2**22  # in and out, and cuBLAS's workspace
    assert found.pop("pieces memory", 0) < 48 * 2**20 + images
    found.pop("whole memory", None)
    assert max(found.values()) < 1e-4, found
    assert len(found) == 4


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_that_does_not_fit_is_halved(device: str) -> None:
    # The stand-in tells how little is free, and the codec takes few images at a time: the metric does not fit. A card
    # tells what all processes leave, of which this one may not take all, in blocks of 20 MiB: 16 images take 150.
    found = play(device, "full", {"gpu": 0.015, "cuda": 0.1}[device])
    assert found["said"] and "ran out with 16 images" in found["said"][0]
    assert len(found["little"]) == len(found["plenty"]) == 16
    for ours, theirs in zip(found["little"], found["plenty"], strict=True):
        assert ours == {name: pytest.approx(value, rel=1e-4) for name, value in theirs.items()}
