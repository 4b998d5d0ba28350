"""What codecs share is given once, with the names of those that share it."""

from __future__ import annotations

from ldm_vae.evaluation.shared import shared_entries, shared_reasons


def test_an_entry_that_differs_names_the_codecs_of_each_text() -> None:
    tables: dict[str, dict[str, object]] = {
        "a": {"step": 1, "crop": "none"},
        "b": {"crop": "none", "step": 2},
        "c": {"crop": "none"},
    }
    assert shared_entries(tables) == {("step", "1"): ["a"], ("step", "2"): ["b"], ("crop", "none"): ["a", "b", "c"]}


def test_metrics_are_together_where_reason_and_codecs_are_the_same() -> None:
    reasons = {
        "a": {"rfid": "no weights", "kid": "no weights", "ssim": "too small"},
        "b": {"rfid": "no weights", "kid": "no weights", "frechet_vgg16": "no weights"},
    }
    assert shared_reasons(reasons) == [
        ("no weights", ["rfid", "kid"], ("a", "b")),
        ("too small", ["ssim"], ("a",)),
        ("no weights", ["frechet_vgg16"], ("b",)),
    ]
    assert shared_reasons({"a": {}}) == []
