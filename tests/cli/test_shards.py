"""`ldm-vae shards` on real folders: what is packed, how webdataset reads it, what is refused; nothing half-written."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from ldm_vae.cli.app import main
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.shards import retry
from ldm_vae.data.shards.index import load_index


def picture(path: Path, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def read_plainly(folder: Path) -> dict[str, dict[str, bytes]]:
    """key -> field -> bytes, by webdataset alone."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        assert sample["__key__"] not in found
        found[sample["__key__"]] = {field: data for field, data in sample.items() if not field.startswith("__")}
    return found


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["shards", *map(str, arguments)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["shards", *map(str, arguments)])
    assert stop.value.code == 0


def test_every_picture_and_what_lies_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "images", tmp_path / "made" / "shards"
    expected = {}
    for number, name in enumerate(["a.png", "b.JPG", "deep/c.webp", "deep/er/d.jpeg", "Überblick Nr 5.png"]):
        key, extension = name.rsplit(".", 1)
        expected[key] = {extension.lower(): picture(folder / name, number)}
    array = np.zeros((12, 8, 8), np.float32)
    np.save(folder / "radar.npy", array)
    expected["radar"] = {"npy": (folder / "radar.npy").read_bytes()}
    (folder / "a.txt").write_text("a caption")
    (folder / "deep" / "c.json").write_text('{"x": 1}')
    (folder / "b.cls").write_text("7")
    expected["a"]["txt"], expected["deep/c"]["json"], expected["b"]["cls"] = b"a caption", b'{"x": 1}', b"7"
    (folder / "README.md").write_text("no picture")
    (folder / "lonely.txt").write_text("beside no picture")
    (folder / ".hidden.png").write_bytes(b"not looked at")
    (folder / ".git").mkdir()
    picture(folder / ".git" / "x.png", 9)

    run(folder, out, "--samples-per-shard", 4)

    assert read_plainly(out) == expected
    index = load_index(str(out))
    assert [shard.samples for shard in index.shards] == [4, 2]
    assert {shard.key(i) for shard in index.shards for i in range(shard.samples)} == set(expected)
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "000001.tar", "index.json"]
    printed = capsys.readouterr().out
    assert "6 images in 2 shards" in printed
    assert "1 .md" in printed
    assert "1 .txt" in printed


def test_same_input_gives_the_same_bytes_and_the_seed_another_order(tmp_path: Path) -> None:
    folder, moved = tmp_path / "images", tmp_path / "elsewhere"
    for number in range(30):
        picture(folder / f"{number:02d}.png", number)
    shutil.copytree(folder, moved)
    for path in sorted(moved.iterdir(), reverse=True):
        os.utime(path, (1, 1))
    run(folder, tmp_path / "one", "--samples-per-shard", 10)
    run(moved, tmp_path / "two", "--samples-per-shard", 10)
    run(folder, tmp_path / "three", "--samples-per-shard", 10, "--seed", 1)
    names = ["000000.tar", "000001.tar", "000002.tar", "index.json"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    orders = [list(read_plainly(tmp_path / which)) for which in ("one", "three")]
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])  # neither is the order of the names
    assert sorted(orders[0]) == sorted(orders[1])
    with tarfile.open(tmp_path / "one" / "000000.tar") as tar:
        assert all((member.mtime, member.uid, member.uname) == (0, 0, "") for member in tar)


def class_folders(folder: Path) -> None:
    for number, name in enumerate(["dog/1.png", "cat/1.png", "cat/old/2.png", "emu/1.png"]):
        picture(folder / name, number)


def test_folders_become_classes_where_it_is_obvious(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    run(tmp_path / "images", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["cat", "dog", "emu"]
    labels = {key: fields["cls"] for key, fields in read_plainly(tmp_path / "out").items()}
    assert labels == {"dog/1": b"1", "cat/1": b"0", "cat/old/2": b"0", "emu/1": b"2"}


def test_no_classes_where_it_is_not_obvious_or_not_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "images")
    run(tmp_path / "images", tmp_path / "unwanted", "--no-classes")
    picture(tmp_path / "images" / "top.png", 9)
    run(tmp_path / "images", tmp_path / "mixed")
    for name in ("unwanted", "mixed"):
        assert all("cls" not in fields for fields in read_plainly(tmp_path / name).values())
        assert not (tmp_path / name / "classes.json").exists()
    assert "lies in no folder of a class" in refused([tmp_path / "images", tmp_path / "no", "--classes"], capsys)
    (tmp_path / "images" / "top.png").unlink()
    (tmp_path / "images" / "dog" / "1.cls").write_text("5")
    run(tmp_path / "images", tmp_path / "own")
    assert [fields.get("cls") for fields in read_plainly(tmp_path / "own").values()].count(b"5") == 1
    assert "has a cls file already" in refused([tmp_path / "images", tmp_path / "no", "--classes"], capsys)
    assert not (tmp_path / "no").exists()


def test_one_class_when_asked(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "cat" / "1.png", 0)
    run(tmp_path / "images", tmp_path / "plain")
    run(tmp_path / "images", tmp_path / "labelled", "--classes")
    assert set(read_plainly(tmp_path / "plain")["cat/1"]) == {"png"}
    assert read_plainly(tmp_path / "labelled")["cat/1"]["cls"] == b"0"


def test_dots_in_names_survive_webdataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = picture(tmp_path / "images" / "set.2" / "a.v1.0.png", 0)
    (tmp_path / "images" / "set.2" / "a.v1.0.txt").write_text("x")
    run(tmp_path / "images", tmp_path / "out")
    assert read_plainly(tmp_path / "out") == {"set.2/a_v1_0": {"png": data, "txt": b"x"}}
    assert "1 name with dots inside" in capsys.readouterr().out


def test_long_names(tmp_path: Path) -> None:
    """Past the 100 and 255 characters of the older tar formats."""
    name = "/".join(["ä" * 60, "b" * 120, "c" * 150])
    data = picture(tmp_path / "images" / f"{name}.png", 0)
    run(tmp_path / "images", tmp_path / "out", "--no-classes")
    assert read_plainly(tmp_path / "out") == {name: {"png": data}}
    assert load_index(str(tmp_path / "out")).shards[0].key(0) == name


@pytest.mark.parametrize(("first", "second"), [("a.png", "a.jpg"), ("a.png", "a.PNG"), ("a.b.png", "a_b.png")])
def test_two_files_for_one_key_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, second: str
) -> None:
    picture(tmp_path / "images" / first, 0)
    picture(tmp_path / "images" / second, 1)
    line = refused([tmp_path / "images", tmp_path / "out"], capsys)
    assert first in line
    assert second in line
    assert not (tmp_path / "out").exists()


def test_what_is_refused_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    assert "is no folder" in refused([folder, out], capsys)
    folder.mkdir()
    (folder / "notes.md").write_text("")
    assert "no images in" in (line := refused([folder, out], capsys))
    assert "1 .md" in line
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "broken link" in refused([folder, out], capsys)
    (folder / "gone.png").unlink()
    picture(folder / "a.png", 0)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"")
    assert "UTF-8" in refused([folder, out], capsys)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "images" / "a.png", 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "holds thesis.tex, which would be lost" in refused([tmp_path / "images", tmp_path / "out"], capsys)
    assert "is no folder" in refused([tmp_path / "images", tmp_path / "out" / "thesis.tex"], capsys)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    run(tmp_path / "images", tmp_path / "empty")
    assert load_index(str(tmp_path / "empty")).samples == 1


def test_an_unreadable_picture_stops_it_with_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        picture(tmp_path / "images" / f"{number}.png", number)
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "3.png":
            raise OSError(5, "Input/output error", str(path))  # a bad disk, which a test has no other way to make
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.0)
    line = refused([tmp_path / "images", tmp_path / "out"], capsys)
    assert "3.png cannot be read (OSError: [Errno 5] Input/output error" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_killed_while_packing_then_run_again(tmp_path: Path) -> None:
    data = picture(tmp_path / "images" / "0.png", 0)
    for number in range(1, 1000):
        (tmp_path / "images" / f"{number}.png").write_bytes(data)
    command = [sys.executable, "-m", "ldm_vae", "shards", tmp_path / "images", tmp_path / "out"]
    process = subprocess.Popen([*map(str, command), "--samples-per-shard", "20"], stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob(".tmp-*/000003.tar")):  # in mid-work
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    run(tmp_path / "images", tmp_path / "out", "--samples-per-shard", 500)
    assert load_index(str(tmp_path / "out")).samples == 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]  # the dead writer's stage is gone


def test_packed_pictures_decode(tmp_path: Path) -> None:
    data = picture(tmp_path / "images" / "a.png", 0)
    run(tmp_path / "images", tmp_path / "out")
    pixels = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    packed = read_plainly(tmp_path / "out")["a"]["png"]
    np.testing.assert_allclose(decode_image(packed, "png", 3), pixels / 127.5 - 1, atol=1e-6, rtol=0)
