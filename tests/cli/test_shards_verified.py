"""`ldm-vae shards` on folders in which something is broken, on those of a validation set, and as a dry run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ldm_vae.data.shards.index import load_index
from tests.cli.commands import command, digests
from tests.conftest import encoded, members, npy, picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """20 whole pictures of two classes."""
    folder = tmp_path / "images"
    for number in range(20):
        path = folder / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    return folder


BROKEN = {
    "cut.png": (encoded(picture(0))[:200], "the file ends"),
    "cut2.png": (encoded(picture(0))[:300], "the file ends"),
    "page.jpg": (b"<html>not found</html>", "cannot identify image"),
    "empty.webp": (b"", "cannot identify image"),
    "objects.npy": (npy(np.array([None])), "never unpickled"),
    "label.cls": (b"cat", "cls is no integer"),
    "caption.txt": (b"\xff\xfe", "UnicodeDecodeError"),
    "data.json": (b"{", "JSONDecodeError"),
}


def break_some(folder: Path) -> None:
    """Puts broken files beside whole ones: a picture each, or a file that stands beside a whole picture."""
    for name, (data, _) in BROKEN.items():
        (folder / "dog" / name).write_bytes(data)
        if name.endswith((".cls", ".txt", ".json")):
            (folder / "dog" / name).with_suffix(".png").write_bytes(encoded(picture(1)))


def test_broken_files_are_left_out_each_is_named_and_the_exit_code_says_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    options = ("--samples-per-shard", 8, "--no-classes")
    assert command("shards", images, plain, *options) == 0
    assert not (plain / "broken.jsonl").exists()
    break_some(images)
    capsys.readouterr()
    assert command("shards", images, out, *options) == 1
    lines = [json.loads(line) for line in (out / "broken.jsonl").read_text().splitlines()]
    assert {Path(line["url"]).name for line in lines} == set(BROKEN)
    for line in lines:
        name = Path(line["url"]).name
        assert BROKEN[name][1] in line["reason"] and line["key"] == f"dog/{name.split('.')[0]}"
        assert Path(line["url"]).exists()  # the path leads a person there
    for path in plain.glob("*.tar"):  # the same samples in the same tars, as if nothing else had been there
        assert (out / path.name).read_bytes() == path.read_bytes()
    printed = capsys.readouterr().out
    assert "20 images in 3 shards" in printed and "left out 8 of 28 images, broken" in printed
    assert "\n  2 x " in printed and "\n  1 x cls is no integer: b'cat'" in printed
    assert command("check", out, "--decode") == 0
    assert command("shards", images, tmp_path / "skipped", *options, "--skip-broken") == 0
    assert digests(tmp_path / "skipped") == digests(out)


def test_without_verification_every_byte_is_packed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_some(images)
    assert command("shards", images, tmp_path / "out", "--no-verify", "--no-classes") == 0
    packed = members(tmp_path / "out" / "000000.tar")
    assert packed["dog/cut.png"] == BROKEN["cut.png"][0] and len(load_index(str(tmp_path / "out")).shards[0].ends) == 28
    assert "did not decode" in capsys.readouterr().out
    assert command("check", tmp_path / "out", "--decode") == 1


def test_a_folder_with_nothing_whole_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no")
    assert command("shards", tmp_path / "images", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "is whole, such as" in error and "a.png (UnidentifiedImageError" in error
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_channels(tmp_path: Path) -> None:
    """Arrays may have any number of channels, unless one is asked for."""
    images = tmp_path / "images"
    images.mkdir()
    for number in (5, 12):
        np.save(images / f"{number}.npy", np.zeros((number, 16, 16), np.float32))
    assert command("shards", images, tmp_path / "any") == 0
    assert command("shards", images, tmp_path / "five", "--channels", 5) == 1
    assert [load_index(str(tmp_path / name)).samples for name in ("any", "five")] == [2, 1]


def test_classes_of_training_keep_their_numbers_in_validation(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "ant").mkdir()
    shutil.copy(images / "cat" / "01.png", images / "ant")
    assert command("shards", images, tmp_path / "train") == 0
    held_out = tmp_path / "held out"
    shutil.copytree(images / "dog", held_out / "dog")
    capsys.readouterr()
    assert command("shards", held_out, tmp_path / "validation", "--classes-from", tmp_path / "train") == 0
    assert "no image of 2 classes, such as ant" in capsys.readouterr().out
    classes = [json.loads((tmp_path / name / "classes.json").read_text()) for name in ("train", "validation")]
    assert classes == [["ant", "cat", "dog"]] * 2
    labels = {data for name, data in members(tmp_path / "validation" / "000000.tar").items() if name.endswith(".cls")}
    assert labels == {b"2"}
    (held_out / "emu").mkdir()
    shutil.copy(images / "cat" / "01.png", held_out / "emu")
    assert command("shards", held_out, tmp_path / "no", "--classes-from", tmp_path / "train") == 2
    error = capsys.readouterr().err
    assert f"emu: no class of {tmp_path / 'train' / 'classes.json'}: rename" in error and error.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_classes_from_numbered_folders_and_from_what_has_none(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders that would only count images are classes where training took them for such."""
    for folder in ("00000", "00001"):
        (tmp_path / "numbered" / folder).mkdir(parents=True)
        (tmp_path / "numbered" / folder / f"{folder}0007.png").write_bytes(encoded(picture(0)))
    assert command("shards", tmp_path / "numbered", tmp_path / "train", "--classes") == 0
    shutil.rmtree(tmp_path / "numbered" / "00000")
    options = ("--classes-from", tmp_path / "train")
    assert command("shards", tmp_path / "numbered", tmp_path / "validation", *options) == 0
    assert members(tmp_path / "validation" / "000000.tar")["00001/000010007.cls"] == b"1"
    assert command("shards", images, tmp_path / "plain", "--no-classes") == 0
    capsys.readouterr()
    for words, message in (
        (("--classes-from", tmp_path / "plain"), "has no classes.json"),
        (("--classes-from", tmp_path / "train", "--no-classes"), "give one of the two"),
        (("--classes-from", tmp_path / "nowhere"), "has no classes.json"),
    ):
        assert command("shards", images, tmp_path / "no", *words) == 2
        assert message in capsys.readouterr().err
    (images / "top.png").write_bytes(encoded(picture(0)))
    assert command("shards", images, tmp_path / "no", *options) == 2
    error = capsys.readouterr().err
    assert "top.png lies in no folder of a class: move it, or leave --classes-from out" in error


def test_a_dry_run_says_what_will_be_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "out"
    (images / "notes.md").touch()
    before = digests(tmp_path)
    assert command("shards", images, out, "--samples-per-shard", 8, "--dry-run") == 0
    assert digests(tmp_path) == before and not out.parent.exists()
    dry = capsys.readouterr().out
    assert command("shards", images, out, "--samples-per-shard", 8) == 0
    written = sum(path.stat().st_size for path in out.glob("*.tar"))
    for text in ("20 images of 2 classes", "1 .md (notes.md)", "3 shards", "0 of 20 images tried", "free for"):
        assert text in dry
    said = re.search(r"3 shards, ([\d.]+) kB", dry)
    assert said is not None
    assert float(said[1]) == pytest.approx(written / 1000, rel=5e-3)  # three digits
    break_some(images)
    capsys.readouterr()
    assert command("shards", images, tmp_path / "other", "--dry-run") == 0  # what is found there is no fault of it
    assert "8 of 28 images tried" in capsys.readouterr().out
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("ldm_vae.cli.summary.shutil.disk_usage", lambda _: usage)
    assert command("shards", images, tmp_path / "other", "--dry-run") == 2
    assert "its disk has 1.00 kB free: make room" in capsys.readouterr().err
