"""`ldm-vae check LATENTS`: each kind of fault is named for what it is, and a whole folder is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import command
from tests.conftest import members, write_tar
from tools.golden import GOLDEN

Problems = list[tuple[str, str, str]]


@pytest.fixture
def out(run: Path, shards: Path, tmp_path: Path) -> Path:
    assert command("encode", run, shards, tmp_path / "out") == 0
    return tmp_path / "out"


def check(out: Path, *options: object, whole: bool = False) -> dict[str, Any]:
    """What --json says."""
    file = out.with_name("check.json")
    assert command("check", out, *options, "--json", file) == (0 if whole else 1)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def kinds(found: dict[str, Any]) -> Problems:
    return [(problem["shard"], problem["kind"], problem["key"]) for problem in found["problems"]]


def test_a_whole_folder(out: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(path.stat().st_size for path in out.glob("*.tar"))
    expected = {"version": 2, "shards": 2, "samples": 11, "bytes": size, "problems": []}
    assert check(out, whole=True) == expected
    assert "2 whole shards, 11 latents" in capsys.readouterr().out
    assert check(out, "--source", shards, whole=True) == expected


@pytest.mark.parametrize("how", ["cut", "changed", "lost", "record lost", "record changed"])
def test_damaged(out: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    tar, record = out / "000001.tar", out / "records" / "000001.json"
    data = tar.read_bytes()
    if how == "cut":
        tar.write_bytes(data[:1000])
    elif how == "changed":
        tar.write_bytes(data[:-1] + b"!")
    elif how == "lost":
        tar.unlink()
    elif how == "record lost":
        record.unlink()
    else:
        record.write_text(record.read_text().replace('"i"', '"x"'))
    found = check(out)
    assert kinds(found) == [("000001.tar", "damaged", "")]
    assert (found["shards"], found["samples"]) == (1, 7)
    reasons = {
        "cut": f"1000 bytes, not {len(data)}",
        "changed": "it has changed",
        "lost": "it is missing",
        "record lost": "000001.json is missing or damaged",
        "record changed": "000001.json is another one than latents.json names",
    }
    assert found["problems"][0]["reason"] == reasons[how]
    assert "damaged" in capsys.readouterr().out


def test_stale_unfinished_and_foreign(out: Path, shards: Path) -> None:
    write_tar(shards / "000001.tar", members(shards / "000001.tar") | {"j.cls": b"9"})
    assert check(out, whole=True)["problems"] == []
    assert kinds(check(out, "--source", shards)) == [("000001.tar", "stale", "")]
    (shards / "000000.tar").rename(shards / "000002.tar")
    assert sorted(kinds(check(out, "--source", shards))) == [
        ("000000.tar", "foreign", ""),
        ("000001.tar", "stale", ""),
        ("000002.tar", "unfinished", ""),
    ]


def test_files_of_others(out: Path) -> None:
    (out / "notes.txt").write_text("ours")
    (out / "records" / "extra").mkdir()
    shutil.copy(out / "000000.tar", out / "000007.tar")
    assert sorted(kinds(check(out))) == [
        ("000007.tar", "foreign", ""),
        ("notes.txt", "foreign", ""),
        ("records/extra", "foreign", ""),
    ]


def test_duplicates(run: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copy(shards / "000001.tar", shards / "000002.tar")
    assert command("encode", run, shards, tmp_path / "out") == 0
    assert kinds(check(tmp_path / "out")) == [("000002.tar", "duplicate", key) for key in "hijk"]


def test_unfinished(out: Path) -> None:
    path = out / "latents.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    assert kinds(check(out)) == [("", "unfinished", "")]


def test_folders_of_version_1(tmp_path: Path) -> None:
    """They have no digests, so the headers of the tars are read, and of their images the sizes of the shards."""
    shutil.copytree(GOLDEN / "made_by_0_1_0", tmp_path / "home")
    latents, shards = tmp_path / "home" / "latents", tmp_path / "home" / "shards" / "train"
    assert check(latents, "--source", shards, whole=True)["samples"] == 6
    assert kinds(check(tmp_path / "home" / "half")) == [("", "unfinished", "")]
    data = (latents / "000001.tar").read_bytes()
    (latents / "000001.tar").write_bytes(data[:2000])
    assert kinds(check(latents)) == [("000001.tar", "damaged", "")]
    content = members(latents / "000000.tar")
    write_tar(latents / "000000.tar", {name: data for name, data in content.items() if name != "000.moments.npy"})
    assert check(latents)["problems"][0]["reason"].startswith("it lacks 000.moments.npy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{out}", "--decode"), "--decode and --write-index are for shards of images"),
        (("{out}", "--write-index"), "--decode and --write-index are for shards of images"),
        (("{shards}", "--source", "{shards}"), "--source is for a folder that `ldm-vae encode` wrote"),
        (("{out}", "--source", "nowhere"), "nowhere"),
    ],
)
def test_bad_options(
    out: Path, shards: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command("check", *(argument.format(out=out, shards=shards) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
