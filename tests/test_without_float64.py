"""On a device without float64, as Apple's and some of Intel's are, all commands run and give the CPU's numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, write_shards
from tests.train.runs import rows, run_in_process
from tests.without_float64.scenes import SCENES, TRAINED

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the scenes were played."""
    folder = tmp_path_factory.mktemp("device")
    write_shards(folder / "shards" / "train", [9, 4, 10])
    write_shards(folder / "shards" / "validation", [5], first_seed=100)
    (folder / "tiny.yaml").write_text(TINY.format(output=folder / "run", shards=folder / "shards"))
    command = [sys.executable, "-m", "tests.without_float64", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_what_runs_on_the_device_asks_for_no_float64(played: Path, scene: str) -> None:
    end = json.loads((played / "scenes.json").read_text())[scene]
    assert end is None, end


def test_the_log_is_that_of_the_cpu(played: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in computes on the CPU, but with kernels of a GPU's choice, whose float32 sums have another order.

    They differ by 3e-7 in the first row. Each of six steps of Adam enlarges that, where a gradient is close to 0.
    """
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run_in_process(played / "tiny.yaml", *TRAINED, f"output={played / 'cpu'}")
    ours, theirs = rows(played / "run"), rows(played / "cpu")
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
