"""What the three users see is what they saw when it was last read, but for numbers."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.walks.record import WALKS, walk
from tests.walks.transcript import masked, read_transcript


@pytest.mark.slow  # they train, evaluate and encode
@pytest.mark.parametrize("name", WALKS)
def test_a_walk(name: str, tmp_path: Path) -> None:
    for stored, seen in walk(name, tmp_path):
        expected, found = (masked(step.lines) for step in (stored, seen))
        changes = "\n".join(difflib.unified_diff(expected, found, "transcript", "now", lineterm="", n=4))
        assert not changes, f"$ {stored.command}\n{changes}\nwhole:\n{seen.text()}"


def test_there_are_three_users() -> None:
    assert WALKS == ("data_person", "engineer", "researcher")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("PSNR 24.1 dB, 1,234 images in 3 s", "PSNR 7 dB, 5 images in 59 ms"),
        ("scale 1.8e-01  | 5", "scale 0.18 | 5"),
        ("weights 0123abcd9876", "weights ffff00009876aaaa"),
    ],
)
def test_numbers_are_masked(first: str, second: str) -> None:
    assert masked([first]) == masked([second])


@pytest.mark.parametrize(
    ("first", "second"), [("B better by 3", "A better by 3"), ("1 image", "1 images"), ("facade", "decade")]
)
def test_words_are_not(first: str, second: str) -> None:
    assert masked([first]) != masked([second])


def test_a_transcript_is_read_as_it_is_written(tmp_path: Path) -> None:
    text = "# One.\n\n$ a\nx\n\ny\n$ b\n\n# Two.\n# Lines.\n$ c ^C z\n[exit 1]\n"
    (tmp_path / "walk.txt").write_text(text)
    steps = read_transcript(tmp_path / "walk.txt")
    assert [step.command for step in steps] == ["a", "b", "c ^C z"]
    assert [step.lines for step in steps] == [["x", "", "y"], [], ["[exit 1]"]]
    assert "".join(step.text() for step in steps) == text
