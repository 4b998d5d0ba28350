"""Names that are no UTF-8, that hold escape sequences of terminals, or that differ by little, through every command."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.shards.index import load_index
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.printable import printable
from tests.cli.commands import command
from tests.cli.conftest import write_shard
from tests.conftest import encoded, members, picture, write_tar

pytestmark = pytest.mark.numerical

LATIN, ESCAPE, LINES, EMOJI = "caf\udce9", "a\x1b[31m\x07z", "first\nsecond", "\U0001f600"
KEYS = [LATIN, ESCAPE, LINES, EMOJI, "[red]b[/]", "back\\slash", "\\udce9"]
BROKEN = "broken\udcfe\x1b[2J"


def keys_of(shards: Path) -> list[str]:
    index = load_index(str(shards))
    return [shard.key(i) for shard in index.shards for i in range(shard.samples)]


def keys_in(latents: Path) -> list[str]:
    dataset = LatentDataset(latents, scale=LatentScale())
    return [dataset[item]["key"] for item in range(len(dataset))]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A tar of samples with such names; one of them is broken."""
    shard = write_shard(tmp_path / "hostile" / "0.tar", KEYS, sizes=[(28, 28)])
    write_tar(shard, members(shard) | {f"{BROKEN}.png": b"no picture", f"{BROKEN}.cls": b"0", f"{BROKEN}.txt": b""})
    return shard.parent


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command printed: no escape sequence of a name is in it."""
    out, err = capsys.readouterr()
    assert "\x1b[31m" not in out + err and "\x1b[2J" not in out + err and "\x07" not in out + err
    return out + err


def test_keys_survive_every_command(
    run: Path, hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "latents"
    assert keys_of(hostile) == [*KEYS, BROKEN]
    for _ in range(2):  # the second has nothing to do
        assert command("encode", run, hostile, out, "--json", tmp_path / "encode.json") == 0
    assert keys_in(out) == KEYS
    quarantined = json.loads((tmp_path / "encode.json").read_text())["quarantined"]["0.tar"]
    assert list(quarantined) == [BROKEN] and "cannot identify image" in quarantined[BROKEN]
    printed = shown(capsys)
    assert "7 latents in 1 tar" in printed and "left out 1 of 8 images" in printed
    with tarfile.open(out / "0.tar") as tar:
        assert {member.name.removesuffix(".moments.npy") for member in tar} >= set(KEYS)
    assert command("check", out, "--source", hostile, "--json", tmp_path / "check.json") == 0
    assert json.loads((tmp_path / "check.json").read_text())["samples"] == len(KEYS)

    assert command("decode", run, out, tmp_path / "pictures") == 0
    assert {os.fsencode(path.name) for path in (tmp_path / "pictures").rglob("*.png")} == {
        os.fsencode(f"{key}.png".rpartition("/")[2]) for key in KEYS
    }
    assert command("stats", run, hostile, "--write") == 0
    assert f"the first {printable(BROKEN)}" in caplog.text and "\x1b" not in caplog.text
    results = run / "results.json"
    assert command("evaluate", run, hostile, "--metrics", "psnr", "--latent", "sample", "--json", results) == 0
    assert [row["key"] for row in json.loads(results.read_text())["per_image"]] == sorted(KEYS)
    assert command("inspect", run, hostile) == 0
    with (run / "inspection" / "scores.csv").open(errors="surrogateescape", newline="") as file:
        assert sorted(row["key"] for row in csv.DictReader(file)) == sorted(KEYS)
    assert command("report", run, "--shards", hostile) == 0
    page = (run / "report.html").read_text()
    assert "caf\ufffd" in page and "\x1b" not in page
    assert command("export", run, tmp_path / "export") == 0
    shown(capsys)


def test_check_names_them_and_its_index_keeps_them(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("check", hostile, "--decode", "--write-index", "--json", tmp_path / "check.json") == 1
    assert "broken\\udcfe\\x1b[2" in shown(capsys)
    assert f"{BROKEN}.png" in [p["member"] for p in json.loads((tmp_path / "check.json").read_text())["problems"]]
    assert keys_of(hostile) == KEYS


def test_errors_and_warnings_are_printable(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A name in a line of an error, and one in a warning, both from a tar that others made."""
    write_tar(tmp_path / "broken" / "0.tar", {f"{ESCAPE}.png": b"no", f"{ESCAPE}2.png": b"no"})
    assert command("encode", run, tmp_path / "broken", tmp_path / "out") == 2
    assert "a\\x1b[31m\\x07z" in shown(capsys)
    write_tar(tmp_path / "texts" / "0.tar", {f"{ESCAPE}.txt": b"no", "b.png": encoded(picture(0))})
    assert command("encode", run, tmp_path / "texts", tmp_path / "texts_out") == 0
    shown(capsys)
    assert "1 sample without a picture (a\\x1b[31m\\x07z)" in caplog.text and "\x1b" not in caplog.text


def test_a_folder_of_images_names_all_files_that_are_no_utf8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    for name in ("a.png", "caf\udce9.png", "b\udce9/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(0)))
    assert command("shards", folder, tmp_path / "shards") == 2
    error = shown(capsys)
    assert "caf\\udce9.png" in error and "b\\udce9/c.png" in error and error.count("\n") == 1
    assert not (tmp_path / "shards").exists()


def picture_shards(folder: Path, shards: dict[str, list[str]]) -> Path:
    """Pictures of one grey each, all different."""
    grey = 0
    for name, keys in shards.items():
        tar = {}
        for key in keys:
            grey += 5
            tar[f"{key}.png"] = encoded(Image.fromarray(np.full((8, 8, 3), grey, np.uint8)))
        write_tar(folder / name, tar)
    return folder


@pytest.mark.parametrize(
    "shards",
    [
        {"0.tar": ["a", "b"], "1.tar": ["a", "c"]},
        {"0.tar": ["a", "b"], "1.tar": ["A", "c"]},
        {"0.tar": ["caf\u00e9"], "1.tar": ["cafe\u0301"]},
        {"0.tar": ["a.png/b"], "1.tar": ["a"]},
        {"0.tar": ["x//y"], "1.tar": ["x/./y"]},
    ],
)
def test_keys_that_two_shards_share_get_folders(run: Path, tmp_path: Path, shards: dict[str, list[str]]) -> None:
    source, out, pictures = picture_shards(tmp_path / "source", shards), tmp_path / "out", tmp_path / "pictures"
    assert command("encode", run, source, out) == 0
    assert command("decode", run, out, pictures, "--count", 1) == 0
    assert command("decode", run, out, pictures) == 0
    found = {str(path.relative_to(pictures)) for path in pictures.rglob("*.png") if path.is_file()}
    assert found == {str(Path(name[:-4], f"{key}.png")) for name, keys in shards.items() for key in keys}


def test_keys_of_their_own_get_no_folders(run: Path, tmp_path: Path) -> None:
    shards = {"0.tar": ["a/b", "c"], "1.tar": ["a_b", "a/c"]}
    source, out, pictures = picture_shards(tmp_path / "source", shards), tmp_path / "out", tmp_path / "pictures"
    assert command("encode", run, source, out) == 0 and command("decode", run, out, pictures) == 0
    assert {str(path.relative_to(pictures)) for path in pictures.rglob("*.png")} == {
        "a/b.png", "c.png", "a_b.png", "a/c.png",
    }  # fmt: skip


@pytest.mark.parametrize("keys", [["x//y", "x/y"], ["a.png/b", "a"]])
def test_keys_of_one_shard_that_would_be_one_picture_are_refused(
    run: Path, tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = picture_shards(tmp_path / "source", {"0.tar": keys}), tmp_path / "out"
    assert command("encode", run, source, out) == 0
    assert command("decode", run, out, tmp_path / "pictures") == 2
    error = capsys.readouterr().err
    assert all(repr(key) in error for key in keys)
    assert not (tmp_path / "pictures").exists()


def test_a_key_that_is_too_long_for_a_file_is_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = picture_shards(tmp_path / "source", {"0.tar": ["a", "k" * 250, "b"]}), tmp_path / "out"
    assert command("encode", run, source, out) == 0
    assert command("decode", run, out, tmp_path / "pictures") == 2
    assert "1 of 3 latents, such as kkk" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_pictures_one_pixel_wide_have_a_mirrored_latent(run: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    write_shard(tmp_path / "narrow" / "0.tar", ["a", "b"], sizes=[size])
    assert command("encode", run, tmp_path / "narrow", tmp_path / "out", "--mirrored") == 0
    stored = members(tmp_path / "out" / "0.tar")
    same = stored["a.moments.npy"] == stored["a.mirrored.moments.npy"]
    assert same == (size[1] == 1)  # nothing to mirror in one column
