"""Numbers and sentences as the page writes them."""

from __future__ import annotations

import pytest

from ldm_vae.report.numbers import printable, prose, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0512806, "0.05128"),
        (294129.9, "294\u202f130"),
        (79718.0, "79\u202f718"),
        (640.0, "640"),
        (1e-6, "1e−6"),
        (0.0, "0"),
        (-0.46458, "−0.4646"),
        (float("nan"), "–"),
        (1.5e12, "1.5e12"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text


def test_prose_marks_code_and_escapes_the_rest() -> None:
    assert prose("use `a<b>` & <i>") == "use <code>a&lt;b&gt;</code> &amp; &lt;i&gt;"


def test_printable_leaves_nothing_that_xml_forbids() -> None:
    assert printable("a\x00\x1b\udc80é") == "a\ufffd\ufffd\ufffdé"
    assert printable(f"one\ntwo\t{short(12345)}") == "one two 12\u202f345"
