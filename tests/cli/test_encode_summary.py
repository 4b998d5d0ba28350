"""What `ldm-vae encode` says at its end, and what its dry run says before it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ldm_vae.data.shards.index import write_index
from ldm_vae.latents import trial
from tests.cli.commands import command, digests
from tests.cli.conftest import write_shard
from tests.conftest import encoded, members, picture, write_tar


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TRIED_FOR", 0.0)


def break_one(shards: Path) -> None:
    write_tar(shards / "000001.tar", members(shards / "000001.tar") | {"x.png": b"no picture", "x.cls": b"1"})


def test_the_summary_counts_what_was_done_and_what_was_there(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    break_one(shards)
    assert command("encode", run, shards, out) == 0
    said = capsys.readouterr().out
    written = sum(path.stat().st_size for path in out.glob("*.tar"))
    read = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert f"{out}: 11 latents in 2 tars, {written / 1000:.1f} kB ({written / 11000:.2f} kB an image)" in said
    assert f"left out 1 of 12 images, all named in {out / 'records'}" in said
    assert "  1 x UnidentifiedImageError: cannot identify image file" in said and "(x)" in said
    assert re.search(r"^encoded 12 images in [\d.]+ s \([\d.,]+ images/s\)$", said, re.MULTILINE)
    assert f"read {read / 1000:.1f} kB ({read / 12000:.2f} kB an image), wrote {written / 1000:.1f} kB" in said
    assert "already" not in said and "nobody has measured the codec" in said

    assert command("encode", run, shards, out) == 0
    again = capsys.readouterr().out
    assert "nothing to do: 2 tars were there already" in again and "encoded" not in again
    assert "11 latents in 2 tars" in again and "left out 1 of 12 images" in again

    (out / "000000.tar").unlink()
    assert command("encode", run, shards, out) == 0
    rest = capsys.readouterr().out
    assert "1 of 2 tars was there already" in rest and "encoded 7 images" in rest


def test_each_process_tells_its_share_and_the_last_one_the_totals(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, (images, total) in enumerate([(7, 0), (4, 1)]):
        monkeypatch.setenv("RANK", str(rank))
        assert command("encode", run, shards, tmp_path / "out") == 0
        said = capsys.readouterr().out
        assert f"process {rank} of 2: encoded {images} images" in said
        assert said.count("11 latents in 2 tars") == total


SIZES = [(64, 48), (33, 70), (48, 64), (40, 40)]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        ("--crop", "center:24"),
        (),
        ("--resize", "short:26", "--mirrored"),
        ("--latents", "mode", "--keep-image", "--multiple", "16"),
    ],
)
def test_a_dry_run_counts_the_bytes_that_will_be_and_writes_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    indexed: bool,
) -> None:
    """The tars of the real run are the reference: their bytes, to the three digits that are said."""
    shards, out = tmp_path / "images", tmp_path / "out"
    for name, count in (("a", 40), ("b", 17)):
        write_shard(shards / f"{name}.tar", [f"{name}{i}" for i in range(count)], sizes=SIZES)
    if indexed:
        write_index(shards)
    cache = tmp_path / "cache"
    monkeypatch.setattr("ldm_vae.latents.source.cache_folder", lambda: cache)
    before = digests(tmp_path)
    assert command("encode", run, shards, out, *options, "--dry-run") == 0
    said = capsys.readouterr().out
    assert digests(tmp_path) == before and not cache.exists() and not out.exists()
    assert "57 images in 2 shards" in said and "images/s) on cpu, float32" in said and "57 images" in said
    assert command("encode", run, shards, out, *options) == 0
    written = sum(path.stat().st_size for path in out.glob("*.tar"))
    told = re.search(r"2 tars, ([\d.,]+) kB \([^)]*\)$", said, re.MULTILINE)
    assert told is not None, said
    assert told[1] == f"{written / 1000:.{1 if written < 99950 else 0}f}"


def test_sizes_that_nobody_knows_are_those_of_the_images_tried(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "HEADERS_READ", 0)
    break_one(shards)
    assert command("encode", run, shards, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"an image\), by \d+ images tried$", said, re.MULTILINE)
    assert re.search(r"left out  1 of 12 images tried\n  1 x Unid.*\(x\)", said), said


def test_a_dry_run_refuses_what_the_run_would(
    run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert command("encode", run, shards, out) == 0
    assert command("encode", run, shards, out, "--dry-run") == 0
    assert "2 of 2 tars are there already" in (said := capfd.readouterr().out) and "nothing to do" in said
    before = digests(tmp_path)
    assert command("encode", run, shards, out, "--mirrored", "--dry-run") == 2
    assert "holds latents made with mirrored" in capfd.readouterr().err
    assert command("encode", run, shards / "000000.tar", out, "--dry-run") == 2
    assert "holds latents of 1 shard that" in capfd.readouterr().err
    assert command("encode", run, shards, "s3://bucket/out", "--dry-run") == 2
    assert "is a URL" in capfd.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    with monkeypatch.context() as patch:
        patch.setattr("ldm_vae.cli.summary.shutil.disk_usage", lambda _: usage)
        assert command("encode", run, shards, tmp_path / "new", "--dry-run") == 2
        assert "its disk has 5.00 kB free: make room there" in capfd.readouterr().err
    for there in (tmp_path / "file", tmp_path / "file" / "new"):  # a file is in the way
        (tmp_path / "file").touch()
        for options in ((), ("--dry-run",)):
            assert command("encode", run, shards, there, *options) == 2
            assert "cannot make a file in" in capfd.readouterr().err
    (tmp_path / "file").unlink()
    assert digests(tmp_path) == before


def test_a_dry_run_refuses_a_file_that_encode_did_not_write(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command("encode", run, shards, out) == 0
    write_shard(shards / "000002.tar", ["l"])
    (out / "000002.tar").write_bytes(b"of someone")
    for options in (("--dry-run",), ()):
        assert command("encode", run, shards, out, *options) == 2
        assert f"{out / '000002.tar'} is none that encode wrote" in capsys.readouterr().err


def test_a_dry_run_in_several_processes_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("encode", tmp_path / "no run", tmp_path / "none", tmp_path / "new", "--dry-run") == 2
    assert "run it in one" in capsys.readouterr().err


def test_a_dry_run_of_a_folder_of_one_image(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(picture(0)))
    assert command("encode", run, tmp_path / "images", tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "1 image in 1 shard" in said and "0 of 1 image tried" in said and "(8, 10, 12)" in said
