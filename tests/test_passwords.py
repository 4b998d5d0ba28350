"""Secrets in URLs: what is taken out of a text, and what is added to a request."""

from __future__ import annotations

import pytest

from ldm_vae.errors import UserError, in_one_line
from ldm_vae.passwords import keep_aside, with_secrets, without_secrets


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_vae.passwords._kept", {})


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("https://user:pa@ss@host:80/x.tar?sig=1 and more", "https://host:80/x.tar and more"),
        ("https://token@host", "https://host"),
        ("'http://h/x?sig=a', (http://u:p@h/y)", "'http://h/x (http://h/y)"),  # a signature may hold quotes
        ("https://h/{0..3}.tar?TOKEN", "https://h/{0..3}.tar"),
        ("s3://bucket/x.tar?versionId=1", "s3://bucket/x.tar"),
        ("s3://bucket/shard-?.tar", "s3://bucket/shard-?.tar"),  # a pattern
        ("/data/a?b@c.tar", "/data/a?b@c.tar"),
        ("http://u:p?q@h/x", "http://h/x"),
    ],
)
def test_a_text_without_secrets(text: str, plain: str) -> None:
    assert without_secrets(text) == plain
    assert without_secrets(plain) == plain


@pytest.mark.parametrize(
    ("given", "asked", "sent"),
    [
        ("http://u:p@h:80/d/{0..2}.tar?sig=1", "http://h:80/d/1.tar", "http://u:p@h:80/d/1.tar?sig=1"),
        ("http://u:p@h/d", "http://h/d/index.json", "http://u:p@h/d/index.json"),
        ("http://u:p@h/d", "http://h/packages/x", "http://u:p@h/packages/x"),  # a password counts for the host
        ("http://h/d?sig=1", "http://h/d/0.tar", "http://h/d/0.tar?sig=1"),
        ("http://h/d?sig=1", "http://h/e/0.tar", "http://h/e/0.tar"),  # a signature does not
        ("http://h/d/0.tar?sig=1", "http://h/d/0.tar", "http://h/d/0.tar?sig=1"),
        ("http://u:p@h/d?sig=1", "http://other/d/0.tar", "http://other/d/0.tar"),
        ("http://u:p@h/d?sig=1", "http://h.other/d/0.tar", "http://h.other/d/0.tar"),
        ("http://{a,b}.h/0.tar?sig=1", "http://c/0.tar", "http://c/0.tar"),
    ],
)
def test_secrets_go_to_the_place_that_they_were_given_for(given: str, asked: str, sent: str) -> None:
    assert keep_aside(given) == without_secrets(given)
    assert with_secrets(asked) == sent


def test_each_of_several_urls_keeps_its_own() -> None:
    for number in range(3):
        keep_aside(f"https://h/d/{number}.tar?sig={number}")
    assert [with_secrets(f"https://h/d/{number}.tar") for number in range(3)] == [
        f"https://h/d/{number}.tar?sig={number}" for number in range(3)
    ]
    keep_aside("https://h/d/1.tar?sig=new")
    assert with_secrets("https://h/d/1.tar") == "https://h/d/1.tar?sig=new"


def test_errors_hold_none() -> None:
    error = UserError("http://u:p@h/x is broken", "ask http://h/y?sig=1")
    assert str(error) == "http://h/x is broken: ask http://h/y"
    assert in_one_line(OSError("no http://u:p@h/x?sig=1")) == "OSError: no http://h/x"


def test_reasons_are_the_same_in_every_run() -> None:
    first, second = (in_one_line(ValueError(f"{object()} and <capsule 0x{number:012x}>")) for number in (1, 2))
    assert first == second and "0xff" in in_one_line(ValueError("marker 0xff"))
