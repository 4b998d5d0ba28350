"""Numbers with their nouns, as commands print them."""

import pytest

from ldm_vae.printable import counted


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (3, "class", "3 classes"),
        (4, "batch", "4 batches"),
        (1281167, "image", "1,281,167 images"),
    ],
)
def test_nouns_agree_with_their_number(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


def test_an_irregular_plural_is_given() -> None:
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]
