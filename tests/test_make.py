"""The Makefile: `make help` lists every target, and whoever calls `make` calls a target that exists."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.conftest import ROOT

TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_help_lists_every_target() -> None:
    text = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert set(re.findall(r"^make ([a-z-]+) +\S", text, re.MULTILINE)) == TARGETS


def test_every_target_is_phony() -> None:
    """A file of the same name would else keep the target from running."""
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS


@pytest.mark.parametrize("caller", [".ci/run", ".github/workflows/ci.yml"])
def test_the_checks_call_targets_that_exist(caller: str) -> None:
    called = re.findall(r"^ *(?:- run: )?make ([a-z-]+)", (ROOT / caller).read_text(), re.MULTILINE)
    assert called
    assert set(called) <= TARGETS
