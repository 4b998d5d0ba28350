"""What tests marked `gpu` do on a card, a device that pretends to be one does for the rest of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ALL_CARDS, CARDS, HAS_CARD, ROOT

CARD = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CARD, reason="needs a CUDA device")])
DEVICES = ["gpu", CARD]
SLOW_DEVICES = [pytest.param("gpu", marks=pytest.mark.slow), CARD]


def environment(device: str) -> dict[str, str]:
    """The variables of a process that uses the device."""
    if device == "cuda":
        return {name: value for name, value in os.environ.items() if name != CARDS} | ALL_CARDS
    return {**os.environ, "ACCELERATE_USE_CPU": "true"} if device == "cpu" else {**os.environ}


def play(device: str, work: str, *arguments: object) -> Any:
    """What a piece of work found on the device (tests/on_device.py), in a process of its own."""
    return json.loads(_played(device, work, *arguments).stdout.splitlines()[-1])


def run_module(device: str, module: str, *arguments: object, mebibytes: int = 0) -> tuple[int, list[str]]:
    """The exit code of `python -m MODULE ARGUMENT ...` on the device, and the lines that it wrote to stderr.

    mebibytes: of the device's memory that it may take; 0 for all.
    """
    done = _played(device, "command", mebibytes, module, *arguments)
    return json.loads(done.stdout.splitlines()[-1])["code"], done.stderr.strip().splitlines()


def _played(device: str, work: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests/on_device.py"), device, work, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(device), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done
