"""What the three users see is what they saw when it was last read, but for numbers."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.walks.record import WALKS, walk
from tests.walks.transcript import masked


@pytest.mark.slow  # they train, evaluate and encode
@pytest.mark.parametrize("name", WALKS)
def test_a_walk(name: str, tmp_path: Path) -> None:
    for stored, seen in walk(name, tmp_path):
        expected, found = (list(masked(step.lines)) for step in (stored, seen))
        changes = "\n".join(difflib.unified_diff(expected, found, "transcript", "now", lineterm="", n=2))
        assert not changes, f"$ {stored.command}\n{changes}\nwhole:\n{seen.text()}"
    assert WALKS


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("PSNR 24.1 dB, 1,234 images in 3 s", "PSNR 7 dB, 5 images in 59 ms"),
        ("scale 1.8e-01  | 5", "scale 0.18 | 5"),
        ("weights 0123abcd9876", "weights ffff00009876aaaa"),
    ],
)
def test_numbers_are_masked(first: str, second: str) -> None:
    assert list(masked([first])) == list(masked([second]))


@pytest.mark.parametrize(
    ("first", "second"), [("B better by 3", "A better by 3"), ("1 image", "1 images"), ("facade", "decade")]
)
def test_words_are_not(first: str, second: str) -> None:
    assert list(masked([first])) != list(masked([second]))
