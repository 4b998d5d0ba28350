"""Commands on a GPU, as a device that pretends to be one sees them: they wait once a batch, and when the next one runs.

What comes out is to the bit what the CPU computes, since that device's arithmetic is the CPU's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm_vae.checks import checked_later, open_checks
from ldm_vae.diagnostics.comparison import SAMPLED
from ldm_vae.errors import UserError
from ldm_vae.finite import finite_samples, not_finite
from ldm_vae.fitting import Single
from ldm_vae.overlap import one_behind
from tests.conftest import ROOT
from tests.one_behind import BATCH, BATCHES

WORK = ("encoded", "encoded mirrored", "encoded mirrored sample", "evaluated", "validated", "measured")
ONE_BY_ONE = ("pictures", "stored")  # stored latents are decoded one at a time, for they have one size each


def play(device: str, work: str, *options: str) -> Any:
    """What came of a piece of work, and of each further try."""
    command = [sys.executable, str(Path(__file__).with_name("one_behind.py")), device, *work.split(), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("work", [*WORK, *ONE_BY_ONE])
def test_a_gpu_is_waited_for_once_a_batch_and_gives_what_the_cpu_gives(work: str) -> None:
    """The one wait is for the event behind the copies of a batch's results: the host cannot have them earlier."""
    (gpu,), (cpu,) = play("gpu", work), play("cpu", work)
    assert gpu["found"] == cpu["found"]
    ((place, times),) = gpu["waits"].items()
    assert place.startswith("event at ldm_vae/transfer.py")
    assert times == BATCHES * (BATCH if work in ONE_BY_ONE else 1)
    assert gpu["pageable"] == {}


def test_what_inspect_collects_of_every_image_is_waited_for_once_a_batch() -> None:
    (gpu,), (cpu,) = play("gpu", "surveyed"), play("cpu", "surveyed")
    assert gpu["found"] == cpu["found"]
    ((place, times),) = gpu["waits"].items()
    assert place.startswith("event at ldm_vae/transfer.py")
    assert times == BATCHES + SAMPLED[0]  # images whose LPIPS is measured, one at a time
    assert gpu["pageable"] == {}


@pytest.mark.slow
def test_inspect_waits_for_nothing_but_the_results_of_batches() -> None:
    """Once for each of the survey and of the sampled images, and for every 8 probes that networks run on."""
    (gpu,), (cpu,) = play("gpu", "inspected"), play("cpu", "inspected")
    assert gpu["found"] == cpu["found"]
    ((place, times),) = gpu["waits"].items()
    assert place.startswith("event at ldm_vae/transfer.py") and gpu["pageable"] == {}
    batches, probes = gpu["found"]["batches"], 2  # 12 probes
    made = probes + 1  # and 2 views
    equivariance = batches["equivariance"] * 3 * probes  # the picture, its latent, the latent of it
    smoothness = probes + batches["smoothness"] * 2  # one step, and 9 on each line
    robustness, activations = batches["noise and storage"] * probes, batches["range of activations"]
    explore = 2 + 3 + 4 + 3  # of 14, 20, 25 and 18 tiles
    survey = batches["reconstructing"] + batches["SSIM and LPIPS"]
    assert times == survey + made + equivariance + smoothness + robustness + activations + explore


@pytest.mark.slow  # processes of some seconds each, and many
@pytest.mark.parametrize("work", ["evaluated", "validated", "measured", "surveyed"])
def test_what_is_not_finite_is_computed_again_with_each_check_at_once(work: str) -> None:
    """Only the batch with the spoiled image waits more often, and the result is the CPU's."""
    (gpu,), (cpu,) = play("gpu", work, "spoiled"), play("cpu", work, "spoiled")
    assert gpu["found"] == cpu["found"] and gpu["found"] != play("cpu", work)[0]["found"]
    events = sum(times for place, times in gpu["waits"].items() if place.startswith("event"))
    assert events == BATCHES + 1 + (SAMPLED[0] if work == "surveyed" else 0)
    assert 3 <= sum(gpu["waits"].values()) - events <= 12  # a few looks at one batch, and none at the others


def values(found: Any) -> Iterator[Any]:
    """The numbers and words in what was printed, in order."""
    if isinstance(found, dict | list):
        for part in found.values() if isinstance(found, dict) else found:
            yield from values(part)
    else:
        yield found


def assert_alike(work: str, found: Any, undisturbed: Any) -> None:
    if work.startswith("encoded"):
        assert found == undisturbed
        return
    for ours, theirs in zip(values(found), values(undisturbed), strict=True):
        assert ours == (pytest.approx(theirs, rel=1e-5, abs=1e-4) if isinstance(theirs, float) else theirs)


@pytest.mark.slow
@pytest.mark.parametrize("work", [*WORK[1:], *ONE_BY_ONE, "surveyed", "inspected"])
def test_where_memory_runs_out_the_result_is_that_of_an_undisturbed_run(work: str) -> None:
    """One allocation fails, at places over the whole run. The codec runs in float64, so that a batch of another size,
    which sums in another order, gives the same float16 and 8-bit values. LPIPS and VGG run in float32: 1e-5 of 10."""
    undisturbed, *disturbed = play("gpu", work, "refuse=5")
    assert len(disturbed) == 5
    for run in disturbed:
        assert_alike(work, run["found"], undisturbed["found"])
    assert max(run["made"] for run in disturbed) > undisturbed["made"]  # something was done again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "kibibytes"), [("encoded mirrored sample", 1500), ("evaluated psnr", 2000), ("stored psnr", 1500)]
)
def test_an_image_that_fits_nowhere_alone_is_computed_in_pieces(work: str, kibibytes: int) -> None:
    """Convolutions take more than anybody counts, so that whole images look as if they fitted. In float64, as above."""
    undisturbed, limited = play("gpu", work, f"card={kibibytes}")
    assert_alike(work, limited["found"], undisturbed["found"])
    said = [line for line in limited["said"] if "goes on in pieces" in line]
    assert len(said) == (2 if work.startswith("stored") else 1)  # once each for encoding and for decoding
    assert undisturbed["said"] == []


@pytest.mark.slow
def test_a_picture_is_decoded_in_pieces_where_it_fits_nowhere_alone_and_refused_where_those_do_not_fit() -> None:
    undisturbed, limited = play("gpu", "pictures", "card=1500")
    assert_alike("pictures", limited["found"], undisturbed["found"])
    assert sum("(40 x 56): goes on in pieces" in line for line in limited["said"]) == 1
    _, refused = play("gpu", "pictures", "card=200")
    assert re.match(
        r"too little memory on gpu:0 for one image alone \(3 x 40 x 56\): [\d,]+ bytes of free memory on gpu:0: "
        r"encoding 40 x 56 pixels takes at least [\d,]+: free memory of gpu:0 .*, or use a device with more, or smal",
        refused["found"],
    )


def test_results_come_in_order_and_what_fits_is_remembered() -> None:
    """A batch of more than 3 images fails here: the first one is halved twice, and none after it fails."""
    tried: list[int] = []

    class Images:
        shape = (3, 8, 8)

        def __init__(self, numbers: list[int]) -> None:
            self.numbers = numbers

        def __len__(self) -> int:
            return len(self.numbers)

        def part(self, start: int, stop: int) -> Images:
            return Images(self.numbers[start:stop])

    def launch(images: Images) -> Any:
        tried.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return lambda: images.numbers

    batches = [Images(list(range(start, start + 8))) for start in (0, 8)]
    found = [number for part in one_behind(batches, launch, torch.device("cpu")) for number in part]
    assert found == list(range(16))
    assert tried == [8, 4, *[2] * 8]


def test_one_image_that_does_not_fit_ends_in_a_line() -> None:
    def launch(single: Single[int]) -> Any:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match=r"one image alone \(3 x 7 x 9\), in pieces too: .*smaller images"):
        list(one_behind([Single(0, (3, 7, 9))], launch, torch.device("cpu")))


def test_checks_are_open_inside_alone() -> None:
    assert open_checks() is None
    with checked_later() as checks:
        assert open_checks() is checks
        checks.require(torch.tensor([True, False]))
        checks.look_at(torch.tensor(3.0), lambda value: float(value) == 3)
    assert open_checks() is None
    assert not checks.passed(checks.values)
    assert checks.passed([torch.tensor([True, True]), torch.tensor(3.0)])


def test_what_holds_nan_or_infinity_is_not_finite() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3, 4, 6)))
    x[1, 2, 3, 5], x[2, 0, 0, 0], x[4, 1, 1, 1] = torch.nan, torch.inf, -torch.inf
    x[3] = torch.finfo(x.dtype).max
    assert finite_samples(x).tolist() == [True, False, False, True, False]
    assert not_finite(x) == [1, 2, 4]
    assert not_finite(x[:0]) == []
