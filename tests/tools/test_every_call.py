"""Calls of libc that fail, one after the other: the harness finds planted mistakes, and none in the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools.every_call_jobs import jobs
from tools.every_call_results import is_wrong, start
from tools.faults import with_library

# The jobs that take longest are among the slow ones.
QUICK = (
    *("shards", "check --write-index", "stats --write", "encode", "decode", "check LATENTS", "evaluate"),
    *("export again", "train, resumed"),
)


@pytest.fixture(scope="module", autouse=True)
def offline() -> None:
    """Skips where faults cannot be made."""
    if sys.platform != "linux":
        pytest.skip("libraries are preloaded on Linux")
    if not any(Path(folder, "cc").exists() for folder in ("/usr/bin", "/usr/local/bin")):
        pytest.skip("needs a C compiler (cc)")


def test_planted_mistakes_are_found(tmp_path: Path) -> None:
    environment = with_library(tmp_path)
    assert environment is not None
    script = Path(__file__).with_name("planted_faults.py")
    (tmp_path / "jobs").mkdir()
    done = subprocess.run(
        [sys.executable, script, tmp_path / "jobs"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {name: list(chain.from_iterable(wrongs)) for name, wrongs in json.loads(done.stdout).items()}
    calls = {name: len(wrongs) for name, wrongs in json.loads(done.stdout).items()}
    assert min(calls.values()) >= 3, calls  # each job opens, writes and closes
    assert found["right"] == []
    assert "less" in found["swallows"]
    assert "lost" in found["overwrites"]
    assert "no line" in found["shows_a_traceback"]
    assert "rerun" in found["keeps_half"]


def disturbed(results: Path, names: tuple[str, ...], sample: int) -> list[str]:
    """What was wrong in a sample of the faults of some jobs, a line each."""
    only = [word for name in names for word in ("--only", name)]
    code = start([*only, "--sample", str(sample), "--results", str(results)])
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {row["job"] for row in rows} == set(names)
    wrong = [str(row) for row in rows if is_wrong(row)]
    assert code == int(bool(wrong))
    return wrong


def test_no_call_of_a_sample_does_harm(tmp_path: Path) -> None:
    assert disturbed(tmp_path / "results.jsonl", QUICK, 997) == []


@pytest.mark.slow
def test_no_call_of_a_larger_sample_does_harm(tmp_path: Path) -> None:
    assert disturbed(tmp_path / "results.jsonl", tuple(job.name for job in jobs()), 251) == []
