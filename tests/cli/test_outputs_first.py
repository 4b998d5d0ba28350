"""Where a result will be written is tried before the work that it takes, and a URL is no place for it yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_vae.codec import LatentCodec
from tests.cli.commands import command, digests

JSON = ("stats", "evaluate", "encode", "roundtrip", "check")
OUT = ("export", "inspect", "shards", "encode", "decode")


def arguments(name: str, out: object) -> list[object]:
    """A command that writes `out`: the file of --json for those of JSON, else the folder."""
    return {
        "stats": ["stats", "run", "shards", "--json", out],
        "evaluate": ["evaluate", "run", "shards", "--metrics", "psnr", "--json", out],
        "roundtrip": ["roundtrip", "run", "latents", "shards", "--json", out],
        "check": ["check", "shards", "--json", out],
        "report": ["report", "run", "--output", out],
        "export": ["export", "run", out, "--shards", "shards"],
        "inspect": ["inspect", "run", "shards", "--output", out],
        "shards": ["shards", "pictures", out],
        "encode": ["encode", "run", "shards", out],
        "decode": ["decode", "run", "latents", out],
    }[name]


@pytest.fixture
def here(run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the commands read; the current one."""
    assert command("encode", run, shards, tmp_path / "latents") == 0
    assert command("decode", run, tmp_path / "latents", tmp_path / "pictures") == 0
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which a codec is loaded."""

    def load(*_: object, **__: object) -> LatentCodec:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(LatentCodec, "load", load)


@pytest.mark.parametrize("place", ["file/numbers.json", "file/new/numbers.json", "latents", "s3://bucket/numbers.json"])
@pytest.mark.parametrize("name", [*JSON, "report"])
def test_a_file_that_cannot_be_written_is_told_first(
    here: Path, no_work: None, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    before = digests(here)
    capsys.readouterr()
    words = ["encode", "run", "shards", "new", "--json", place] if name == "encode" else arguments(name, place)
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ldm-vae: ") and error.count("\n") == 1, error
    assert any(reason in error for reason in ("cannot make a file in", "is a folder", "is a URL")), error
    assert digests(here) == before and not (here / "s3:").exists()


@pytest.mark.parametrize("place", ["s3://bucket/out", "gs://bucket/out", "https://host/out", "hf://team/model"])
@pytest.mark.parametrize("name", OUT)
def test_a_url_is_no_output(here: Path, capsys: pytest.CaptureFixture[str], name: str, place: str) -> None:
    before = {path.name for path in here.iterdir()}
    capsys.readouterr()
    assert command(*arguments(name, place)) == 2
    assert "is a URL, and outputs are written to disks: give a local path" in capsys.readouterr().err
    assert {path.name for path in here.iterdir()} == before


@pytest.mark.parametrize("name", ["export", "inspect", "shards", "encode"])
def test_a_folder_that_cannot_be_made_is_told_first(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work: dict[str, tuple[str, Callable[..., object]]] = {
        "export": ("ldm_vae.latents.measure.measure_statistics", lambda *_, **__: pytest.fail("the work has begun")),
        "inspect": ("ldm_vae.diagnostics.inspect._survey_shards", lambda *_, **__: pytest.fail("the work has begun")),
        "shards": ("ldm_vae.data.shards.pack.find_samples", lambda *_, **__: pytest.fail("the work has begun")),
        "encode": ("ldm_vae.codec.LatentCodec.load", lambda *_, **__: pytest.fail("the work has begun")),
    }
    monkeypatch.setattr(*work[name])
    capsys.readouterr()
    assert command(*arguments(name, "file/out")) == 2
    assert "cannot make a file in" in capsys.readouterr().err


def test_statistics_that_cannot_be_stored_are_told_first(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ldm_vae.latents.measure.measure_statistics", lambda *_, **__: pytest.fail("the work has begun")
    )
    (here / "run" / "latent_statistics.json").mkdir()
    assert command("stats", "run", "shards", "--write") == 2
    assert "latent_statistics.json is a folder" in capsys.readouterr().err
