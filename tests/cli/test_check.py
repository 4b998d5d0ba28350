"""`ldm-vae check` on shards damaged here, each in one way, and on hostile ones: found, named, nothing followed."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import typer
import webdataset
from PIL import Image
from typer.testing import CliRunner, Result

from ldm_vae.cli.check import check
from ldm_vae.data.shards.check import check_shards
from ldm_vae.data.shards.index import load_index, write_index
from ldm_vae.errors import UserError

app = typer.Typer()
app.command()(check)

Entry = tuple[str | tarfile.TarInfo, bytes]


def jpg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def pairs(names: Sequence[str]) -> list[Entry]:
    return [entry for name in names for entry in ((f"{name}.jpg", jpg()), (f"{name}.cls", b"1"))]


def shard(path: Path, entries: Sequence[Entry]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def run(spec: Path | str, *options: object) -> tuple[Result, dict[str, Any]]:
    """The result of the command, and what --json wrote."""
    target = Path("report.json") if "://" in str(spec) else Path(str(spec)).parent / "report.json"
    result = CliRunner(env={"COLUMNS": "2000"}).invoke(app, [str(spec), "--json", str(target), *map(str, options)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result, json.loads(target.read_text())


def problems(spec: Path | str, *options: object) -> list[tuple[str, str]]:
    """(member, reason) of a set with something wrong: also in the table, and in the exit code."""
    result, report = run(spec, *options)
    found = [(problem["member"], problem["reason"]) for problem in report["problems"]]
    assert result.exit_code == (1 if found else 0)
    assert found
    assert found[0][1] in result.output
    return found


def plainly(folder: Path) -> list[str]:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)]


def test_whole_shards_exit_0_and_get_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for number in range(3):
        shard(folder / f"{number}.tar", pairs([f"{number}-{i}" for i in range(4)]))
    result, report = run(folder, "--decode", "--write-index")
    assert result.exit_code == 0
    assert (report["shards"], report["samples"], report["problems"]) == (3, 12, [])
    assert report["bytes"] == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert load_index(str(folder)).samples == 12
    written = (folder / "index.json").read_bytes()
    assert write_index(folder).read_bytes() == written
    assert run(folder, "--decode")[0].exit_code == 0  # the index agrees


def test_tar_truncated_inside_a_member(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    path = shard(folder / "0.tar", pairs([f"{i}" for i in range(20)]))
    with tarfile.open(path) as tar:
        tenth = tar.getmember("10.jpg")
    os.truncate(path, tenth.offset_data + 100)
    ((member, reason),) = problems(folder)
    assert member == ""
    assert "truncated: member '10.jpg'" in reason
    run(folder, "--write-index")
    assert load_index(str(folder)).samples == 10


def test_tar_cut_at_a_member_boundary(tmp_path: Path) -> None:
    """webdataset gives 8 of 20 samples and no error."""
    folder = tmp_path / "shards"
    path = shard(folder / "0.tar", pairs([f"{i}" for i in range(20)]))
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmember("8.jpg").offset)
    assert len(plainly(folder)) == 8
    ((_, reason),) = problems(folder)
    assert "the end mark is missing" in reason


def test_tar_cut_and_closed_again_disagrees_with_its_index(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    path = shard(folder / "0.tar", pairs([f"{i}" for i in range(20)]))
    size = path.stat().st_size
    write_index(folder)
    with tarfile.open(path) as tar:
        cut = tar.getmember("8.jpg").offset
    with path.open("r+b") as file:
        file.truncate(cut)
        file.truncate(size)  # zeros, as a file system leaves them after a crash: the size is right
    found = problems(folder)
    assert found == [(f"{i}", "in index.json, not in the shard") for i in range(8, 20)]


def test_disagreement_with_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(folder / "0.tar", pairs(["a", "b"]))
    gone = shard(folder / "1.tar", pairs(["c"]))
    write_index(folder)
    shard(folder / "0.tar", [("a.jpg", jpg(1) + bytes(1000)), ("a.cls", b"1"), *pairs(["b", "new"])])
    gone.rename(folder / "2.tar")
    found = problems(folder)
    reasons = {member: reason for member, reason in found if member}
    assert reasons["1.tar"] == "listed, but not there"
    assert reasons["a"] == reasons["b"] == "index.json has other places or fields"
    assert reasons["new"] == "in the shard, not in index.json"
    assert "index.json does not list it" in [reason for _, reason in found]
    result, _ = run(folder, "--write-index")
    assert result.exit_code == 1  # it was wrong, and is mended
    assert run(folder)[0].exit_code == 0
    size = (folder / "2.tar").stat().st_size
    os.truncate(folder / "2.tar", size + 512)
    assert problems(folder) == [("", f"index.json says {size} bytes, it has {size + 512}")]


def test_an_index_that_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(folder / "0.tar", pairs(["a"]))
    for text in ("not json", "[]", '{"format": "ldm_vae.index", "version": 99}', "[" * 100_000):
        (folder / "index.json").write_text(text)
        ((member, reason),) = problems(folder)
        assert member == ""
        assert "no index of shards" in reason
    run(folder, "--write-index")
    assert run(folder)[0].exit_code == 0


def test_the_table_shows_long_names_cut_and_says_so(tmp_path: Path) -> None:
    folder, name = tmp_path / "shards", "long" * 500
    shard(folder / "0.tar", [(f"{name}.jpg", jpg()), (f"{name}.jpg", jpg())])
    result, report = run(folder)
    assert f"{name[:990]}" in result.output and name not in result.output and "…" in result.output
    assert name in json.dumps(report)


def test_interleaved_and_repeated_keys(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    entries: list[Entry] = [("a.jpg", jpg()), ("b.jpg", jpg()), ("a.cls", b"1"), ("b.cls", b"1")]
    shard(folder / "0.tar", entries)
    assert plainly(folder) == ["a", "b", "a", "b"]  # four half samples, without a word
    assert [member for member, reason in problems(folder) if "others in between" in reason] == ["a.cls", "b.cls"]
    shard(folder / "0.tar", [("a.jpg", jpg()), ("a.JPG", jpg(1)), ("a.cls", b"1")])
    assert problems(folder) == [("a.JPG", "the name appears twice")]


def test_one_key_in_two_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(folder / "0.tar", pairs(["a", "b"]))
    shard(folder / "1.tar", pairs(["c", "a", "d"]))
    assert problems(folder) == [("a", "the same key as in 0.tar")]


@pytest.mark.parametrize(
    ("name", "seen", "reason"),
    [
        ("a.v1.0.jpg", ["a"], "a dot inside the name: webdataset reads field 'v1.0.jpg' of key 'a'"),
        ("folder.1/a.jpg", ["folder.1/a"], None),
        (".hidden.jpg", [], "webdataset skips this name"),
        ("__meta__/a.jpg", [], "webdataset skips this name"),
        ("readme", [], "webdataset skips this name"),
    ],
)
def test_names_that_webdataset_reads_otherwise(tmp_path: Path, name: str, seen: list[str], reason: str | None) -> None:
    folder = tmp_path / "shards"
    shard(folder / "0.tar", [(name, jpg())])
    assert plainly(folder) == seen
    if reason is None:
        assert run(folder)[0].exit_code == 0
    else:
        assert (name, reason) in problems(folder)


def test_pictures_labels_and_texts_that_do_not_decode(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    deep = b"[" * 1_000_000
    good = [("good.jpg", jpg()), ("good.cls", b"3"), ("good.txt", "grün".encode()), ("good.json", b"{}")]
    bad: list[Entry] = [
        *(("short.jpg", jpg()[:200]), ("short.cls", b"1")),
        *(("label.jpg", jpg()), ("label.cls", b"cat")),
        *(("deep.jpg", jpg()), ("deep.cls", b"1"), ("deep.json", deep)),
        *(("text.jpg", jpg()), ("text.cls", b"1"), ("text.txt", b"\xff\xfe")),
        *(("empty.jpg", b""), ("empty.cls", b"1")),
        *(("alone.cls", b"1"), ("odd.jpg", jpg())),
    ]
    shard(folder / "0.tar", [*good, *bad])
    found = dict(problems(folder, "--decode"))
    assert set(found) == {"short.jpg", "label.cls", "deep.json", "text.txt", "empty.jpg", "alone", "odd"}
    assert "Truncated" in found["short.jpg"]
    assert "no integer" in found["label.cls"]
    assert "RecursionError" in found["deep.json"]
    assert "UnicodeDecodeError" in found["text.txt"]
    assert found["alone"] == "no picture in this sample"
    assert "no cls" in found["odd"]
    run(folder, "--decode", "--write-index")
    (entry,) = load_index(str(folder)).shards
    assert [entry.key(i) for i in range(entry.samples)] == ["good", "odd"]


def test_an_empty_archive_is_not_whole(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(folder / "0.tar", [])
    shard(folder / "1.tar", [link("folder", tarfile.DIRTYPE)])
    assert problems(folder) == [("", "no sample in it: remove it, or make it anew")] * 2
    assert "0 whole shards" in run(folder)[0].output


def test_without_decode_some_pictures_are_decoded(tmp_path: Path) -> None:
    """Headers alone called a shard of error pages whole."""
    folder = tmp_path / "shards"
    pages: list[Entry] = [(f"{number:03d}.jpg", b"<html>" + bytes(number)) for number in range(80)]
    shard(folder / "0.tar", pages)
    array = io.BytesIO()
    np.save(array, np.zeros((12, 8, 8), np.float32))
    shard(folder / "1.tar", [("a.npy", array.getvalue())])  # of as many channels as it likes
    assert len(problems(folder)) == 80  # all of a shard where one is broken
    assert run(folder)[1]["samples"] == 1
    (folder / "0.tar").unlink()
    one: list[Entry] = [*pairs([f"{number:03d}" for number in range(80)]), ("broken.jpg", b""), ("broken.cls", b"1")]
    shard(folder / "0.tar", one)
    assert run(folder)[0].exit_code == 0
    assert [member for member, _ in problems(folder, "--decode", "--channels", 3)] == ["broken.jpg", "a.npy"]
    np.save(cut := io.BytesIO(), np.zeros((12, 8, 8), np.float32))
    shard(folder / "1.tar", [("a.npy", cut.getvalue()[:-1])])
    assert [member for member, _ in problems(folder)] == ["a.npy"]


def test_equal_faults_are_one_row_and_the_same_in_every_run(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    rows: list[Entry] = [(f"{number}.jpg", b"<html>" + bytes(number)) for number in range(40)]
    for number in range(40):
        array = io.BytesIO()
        np.save(array, np.full((3, 8, 8), 2.0 + number))
        rows.append((f"{number}.npy", array.getvalue()))
    shard(folder / "0.tar", rows)
    result, report = run(folder, "--decode")
    reasons = [problem["reason"] for problem in report["problems"] if problem["member"].endswith("jpg")]
    assert reasons == ["UnidentifiedImageError: cannot identify image file <_io.BytesIO object>"] * 40
    lines = [line for line in result.output.splitlines() if "UnidentifiedImage" in line or "floats from" in line]
    assert len(lines) == 2 and all(" 40 " in line for line in lines)
    assert "floats from 2 to 2" in lines[1]


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    tifffile.imwrite(file := io.BytesIO(), pixels, **options)
    return file.getvalue()


def test_some_tiffs_are_decoded_too_whatever_their_channels(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    whole = {
        "grey": tiff(np.zeros((8, 9), np.uint16)),
        "rgb": tiff(np.zeros((8, 9, 3), np.uint8), photometric="rgb"),
        "bands": tiff(np.zeros((12, 8, 9), np.float32), photometric="minisblack", planarconfig="separate"),
        "pages": tiff(np.zeros((5, 8, 9), np.uint8), photometric="minisblack"),
    }
    entries: list[Entry] = [(f"{name}.tif", data) for name, data in whole.items()]
    shard(folder / "0.tar", entries)
    assert run(folder)[0].exit_code == 0
    shard(folder / "0.tar", [*entries, ("cut.tiff", whole["rgb"][:100])])
    assert [member for member, _ in problems(folder)] == ["cut.tiff"]


def test_channels_of_decode(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    array = io.BytesIO()
    np.save(array, np.zeros((12, 8, 8), np.float32))
    shard(folder / "0.tar", [("a.npy", array.getvalue())])
    assert run(folder, "--decode", "--channels", 12)[0].exit_code == 0
    assert "neither (3, H, W)" in problems(folder, "--decode")[0][1]


def link(name: str, kind: bytes, target: str = "") -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_hostile_members_are_named_and_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpg())
    entries: list[Entry] = [
        ("good.jpg", jpg()),
        (str(tmp_path / "absolute.jpg"), jpg()),
        ("../../escaped.jpg", jpg()),
        link("symbolic.jpg", tarfile.SYMTYPE, str(secret)),
        link("hard.jpg", tarfile.LNKTYPE, str(secret)),
        link("device.jpg", tarfile.CHRTYPE),
        link("pipe.jpg", tarfile.FIFOTYPE),
        ("\x1b[31mred.jpg", jpg()),
    ]
    shard(folder / "0.tar", entries)
    before = sorted(tmp_path.rglob("*"))
    result, report = run(folder, "--decode", "--write-index")
    assert result.exit_code == 1
    found = {problem["member"]: problem["reason"] for problem in report["problems"]}
    assert "symbolic link" in found["symbolic.jpg"]
    assert "hard link" in found["hard.jpg"]
    assert "device" in found["device.jpg"]
    assert "pipe" in found["pipe.jpg"]
    assert "leaves its folder" in found["../../escaped.jpg"]
    assert "leaves its folder" in found[str(tmp_path / "absolute.jpg")]
    assert "\x1b[31mred" not in result.output
    (entry,) = load_index(str(folder)).shards
    assert [entry.key(i) for i in range(entry.samples)] == ["good", "\x1b[31mred"]
    written = {folder / "index.json", tmp_path / "report.json"}
    assert set(tmp_path.rglob("*")) == {*before, *written}  # nothing extracted


def test_gigabytes_claimed_or_there_take_no_memory(tmp_path: Path) -> None:
    folder = tmp_path / "shards"

    def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT)

    folder.mkdir()
    good = header("good.jpg", len(jpg())) + jpg() + bytes(-len(jpg()) % 512)
    contents = {
        "longname.tar": header("././@LongLink", 2**32, tarfile.GNUTYPE_LONGNAME),
        "pax.tar": header("PaxHeader", 2**32, tarfile.XHDTYPE),
        "picture.tar": header("bomb.jpg", 2**32),
        "claimed.tar": header("claimed.jpg", 2**60),
        "text.tar": header("good.json", 2**26) + bytes(2**26 + 1024),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(good + data)
        if name in ("longname.tar", "pax.tar", "picture.tar"):
            os.truncate(folder / name, len(good) + 512 + 2**32 + 1024)  # sparse: takes no disk either
    tracemalloc.start()
    _, report = run(folder, "--decode")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found: dict[str, str] = {}
    for problem in report["problems"]:
        found.setdefault(Path(problem["url"]).name, problem["reason"])
    assert "header record of 4294967296 bytes" in found["longname.tar"]
    assert "header record of 4294967296 bytes" in found["pax.tar"]
    assert "4294967296 bytes are over the limit" in found["picture.tar"]
    assert "truncated: member 'claimed.jpg'" in found["claimed.tar"]
    assert "67108864 bytes are over the limit" in found["text.tar"]
    assert peak < 2**23  # of the gigabytes named and stored


def test_image_bomb(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    content = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = file.getvalue()[:12] + content + struct.pack(">I", zlib.crc32(content)) + file.getvalue()[33:]
    shard(folder / "0.tar", [("bomb.png", bomb)])
    ((member, reason),) = problems(folder, "--decode")
    assert member == "bomb.png"
    assert "limit" in reason


def test_two_archives_in_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    first, second = shard(tmp_path / "a.tar", pairs(["a"])), shard(tmp_path / "b.tar", pairs(["b"]))
    folder.mkdir()
    (folder / "0.tar").write_bytes(first.read_bytes() + second.read_bytes())
    assert plainly(folder) == ["a"]
    ((_, reason),) = problems(folder)
    assert f"before byte {first.stat().st_size} " in reason


def test_folders_and_large_blocking_are_fine(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    directory = tarfile.TarInfo("late")
    directory.type = tarfile.DIRTYPE
    path = shard(folder / "0.tar", [link("early", tarfile.DIRTYPE), *pairs(["early/a"]), (directory, b"")])
    with path.open("ab") as file:
        file.write(bytes(2**21))
    assert run(folder)[0].exit_code == 0


def test_no_tar_and_an_empty_file(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "0.tar").write_bytes(b"this is no archive" * 100)
    (folder / "1.tar").write_bytes(b"")
    reasons = [reason for _, reason in problems(folder)]
    assert "no tar" in reasons[0]
    assert "empty file" in reasons[1]


def test_what_names_nothing_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards in"):
        run(tmp_path)
    with pytest.raises(UserError, match="not found"):
        run(tmp_path / "0.tar")


def test_an_index_of_part_of_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shards"
    for name in ("a0", "a1", "b0"):
        shard(folder / f"{name}.tar", pairs([name]))
    with pytest.raises(UserError, match=r"leaves .*b0.tar out"):
        run(folder / "a*.tar", "--write-index")
    with pytest.raises(UserError, match="is remote"):
        run("http://localhost:1/shards/{0..3}.tar", "--write-index")
    assert not (folder / "index.json").exists()
    result, report = run(str(folder) + "/a{0..1}.tar")
    assert (result.exit_code, report["samples"]) == (0, 2)


class RangeHandler(SimpleHTTPRequestHandler):
    """The standard library's file server, with byte ranges."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        content = path.read_bytes()
        part = content[int(asked[1]) : int(asked[2]) + 1] if asked else content
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *arguments: object) -> None:
        """Silence."""


def test_remote_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(folder / "0.tar", pairs(["a", "b"]))
    path = shard(folder / "1.tar", pairs(["c", "d"]))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"

        def found(spec: str) -> list[tuple[str, str, str]]:
            reports = check_shards(spec, decode=True, channels=3)
            return [(report.url, problem.member, problem.reason) for report in reports for problem in report.problems]

        ((where, _, reason),) = found(url + "/{0..1}.tar")
        assert where == f"{url}/index.json"
        assert "remote shards need an index" in reason
        write_index(folder)
        assert found(url) == []
        usable = [report.shard for report in check_shards(url, decode=True, channels=3)]
        assert [shard.samples for shard in usable if shard is not None] == [2, 2]
        with tarfile.open(path) as tar:
            os.truncate(path, tar.getmember("d.jpg").offset)
        reasons = [reason for where, _, reason in found(url) if where == f"{url}/1.tar"]
        assert "the end mark is missing" in reasons[0]
        assert "in index.json, not in the shard" in reasons
        path.unlink()
        ((where, _, _),) = found(url)
        assert where == f"{url}/1.tar"
        server.shutdown()
