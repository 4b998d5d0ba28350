"""Where each bound of reading lies: what is just inside passes, and what is just outside is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldm_vae.documents import (
    MAX_DEPTH,
    YAML_VALUES,
    DamagedFile,
    parse_json,
    parse_lines,
    parse_yaml,
    read_json,
    read_yaml,
)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ("\ufeff[2]", [2]),
        (nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH))),
        (str(2**64 - 1), 2**64 - 1),
        (str(-(2**63)), -(2**63)),
        ('"\\ud83d\\ude00"', "\U0001f600"),  # a whole character in two escapes
        ('"\\\\ud800"', "\\ud800"),  # an escaped backslash
    ],
)
def test_json_within_the_bounds(text: str, value: Any) -> None:
    assert parse_json(text.encode(), "x.json", "") == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "Expecting"),
        (nested(MAX_DEPTH + 1).encode(), "nested too deeply"),
        (nested(100_000).encode(), "nested too deeply"),
        (str(2**64).encode(), "more than 64 bits"),
        (b"9" * 5000, "more than 64 bits"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' comes twice"),
        (b'"\\ud800"', "half of a character"),
        (b'{"\\udcff": 1}', "half of a character"),
        (b"\xff", "byte 0 is no UTF-8"),
        (b'{"a": "\xe4"}', "byte 7 is no UTF-8"),
    ],
)
def test_json_beyond_the_bounds(data: bytes, reason: str) -> None:
    with pytest.raises(DamagedFile, match=rf"^x\.json is damaged \(.*{reason}.*mend it"):
        parse_json(data, "x.json", "mend it")


def test_a_name_that_is_no_utf8_is_kept_where_names_are(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert parse_json(json.dumps([name]).encode(), "x", "", names=True) == [name]
    with pytest.raises(DamagedFile, match="half of a character"):
        parse_json(b'["\\ud800"]', "x", "", names=True)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x.json", "")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "file" / "x.json", "")
    with pytest.raises(DamagedFile, match="is a folder"):
        read_json(tmp_path, "")
    (tmp_path / "long.json").write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(DamagedFile, match="more than 50 bytes"):
        read_json(tmp_path / "long.json", "", largest=50)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DamagedFile, match="it holds no object"):
        read_json(tmp_path / "list.json", "")


def test_one_bad_line_costs_one_row() -> None:
    lines = b'{"step": 1}\n{"step": \xff}\n[]\n{"step": 3}\n{"st'
    assert list(parse_lines(lines)) == [{"step": 1}, None, None, {"step": 3}, None]


def test_aliases_are_read_until_they_grow(tmp_path: Path) -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a\n", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }
    few = YAML_VALUES // 11
    text = f"a: &a [{','.join('1234567890')}]\nb: ["
    assert len(parse_yaml(text + ",".join(["*a"] * (few - 10)) + "]", "x")["b"]) == few - 10
    with pytest.raises(DamagedFile, match="values with its aliases"):
        parse_yaml(text + ",".join(["*a"] * (few + 10)) + "]", "x")
    (tmp_path / "r.yaml").write_text("a: &a [*a]")
    with pytest.raises(DamagedFile, match=r"r\.yaml is not valid YAML.*the alias \*a lies within"):
        read_yaml(tmp_path / "r.yaml")
