"""The index against tarfile and webdataset, and everything that makes shards unfit."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import webdataset

from ldm_vae.data.shards.index import Index, load_index, write_index
from ldm_vae.data.shards.names import split_name
from ldm_vae.data.shards.scan import Scan, scan_shard
from ldm_vae.data.shards.storage import read_whole
from ldm_vae.errors import UserError
from tests.data.conftest import MakeShards, WriteTar


def contents(index: Index) -> dict[str, dict[str, bytes]]:
    """Key -> field -> bytes, read at the places in the index."""
    found = {}
    for shard in index.shards:
        content = read_whole(shard.url)
        for ordinal in range(shard.samples):
            places = shard.fields(ordinal).items()
            found[shard.key(ordinal)] = {field: content[offset : offset + size] for field, (offset, size) in places}
    return found


def through_webdataset(index: Index) -> dict[str, dict[str, bytes]]:
    found = {}
    for sample in webdataset.WebDataset([shard.url for shard in index.shards], shardshuffle=False):
        found[sample["__key__"]] = {field: value for field, value in sample.items() if not field.startswith("__")}
    return found


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_places_are_those_of_tarfile(tmp_path: Path, format: int) -> None:
    """Long names, other alphabets, folders and empty members in the three formats that exist."""
    names = ["a.jpg", "a.cls", "folder/b.png", "folder/b.txt", "c.npy"]
    if format != tarfile.USTAR_FORMAT:
        names += ["long/" * 40 + "d.jpg", "ä-日本.jpg"]
    with tarfile.open(tmp_path / "0.tar", "w", format=format) as archive:
        for i, name in enumerate(names):
            if i == 2:
                folder = tarfile.TarInfo("folder")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size = 700 * i
            archive.addfile(info, io.BytesIO(bytes([i]) * info.size))
    index = load_index(str(tmp_path))
    with tarfile.open(tmp_path / "0.tar") as archive:
        expected = {m.name: (m.offset_data, m.size) for m in archive if m.isfile()}
    shard = index.shards[0]
    found = {
        f"{shard.key(ordinal)}.{field}": place
        for ordinal in range(shard.samples)
        for field, place in shard.fields(ordinal).items()
    }
    assert found == expected
    assert contents(index) == through_webdataset(index)


def test_scan_file_and_webdataset_agree(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=7, verbose=0) as writer:
        for i in range(20):
            sample = {"__key__": f"k{i}", "jpg": os.urandom(50 + 100 * i), "json": {"i": i}}
            writer.write(sample | ({"cls": i} if i % 2 else {}))
    scanned = load_index(str(tmp_path))
    assert write_index(tmp_path) == tmp_path / "index.json"
    from_file = load_index(str(tmp_path))
    assert contents(scanned) == contents(from_file) == through_webdataset(scanned)
    assert from_file.counts.tolist() == [7, 7, 6] and from_file.samples == 20
    assert from_file.fields == {"jpg": 20, "json": 20, "cls": 10}
    assert [from_file.locate(n) for n in (0, 6, 7, 19)] == [(0, 0), (0, 6), (1, 0), (2, 5)]
    assert from_file.fingerprint == scanned.fingerprint
    assert len(load_index(str(tmp_path / "{000,002}.tar")).shards) == 2
    entry = json.loads((tmp_path / "index.json").read_text())["shards"][0]
    assert {"name", "bytes", "samples", "keys", "members", "pictures"} == set(entry)
    assert entry["bytes"] == (tmp_path / "000.tar").stat().st_size


def test_fingerprint_tells_data_apart_but_not_where_they_lie(make_shards: MakeShards, tmp_path: Path) -> None:
    first = load_index(str(make_shards(tmp_path / "a", [3, 4])))
    assert load_index(str(make_shards(tmp_path / "b", [3, 4]))).fingerprint == first.fingerprint
    assert load_index(str(make_shards(tmp_path / "c", [4, 3]))).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("a.jpg", "a", "jpg"),
        ("a.v1.0.JPG", "a.v1.0", "jpg"),
        ("x.y/a.png", "x.y/a", "png"),
        ("x.y/a", "x.y/a", ""),
        (".hidden", ".hidden", ""),
        ("a.", "a", ""),
    ],
)
def test_key_and_field(name: str, key: str, field: str) -> None:
    assert split_name(name) == (key, field)


def test_dots_in_names_do_not_eat_the_key(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.v1.0.jpg": b"1", "a.v1.0.cls": b"2", "a.v1.1.jpg": b"3"})
    assert contents(load_index(str(tmp_path))) == {"a.v1.0": {"jpg": b"1", "cls": b"2"}, "a.v1.1": {"jpg": b"3"}}


def test_cache_scans_only_what_changed(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ldm_vae.data.shards.describe as describing

    scanned: list[str] = []

    def watched_scan(url: str) -> Scan:
        scanned.append(Path(url).name)
        return scan_shard(url)

    monkeypatch.setattr(describing, "scan_shard", watched_scan)
    folder, cache = make_shards(tmp_path / "shards", [3, 3]), tmp_path / "run" / "index"
    first = load_index(str(folder), cache=cache)
    assert scanned == ["000000.tar", "000001.tar"]
    again = load_index(str(folder), cache=cache)
    assert len(scanned) == 2 and contents(again) == contents(first)
    make_shards(tmp_path / "new", [5])
    (tmp_path / "new" / "000000.tar").replace(folder / "000001.tar")
    assert load_index(str(folder), cache=cache).counts.tolist() == [3, 5]
    assert scanned[2:] == ["000001.tar"]
    assert not (folder / "index.json").exists()
    (stored,) = cache.glob("*.json")
    for damage in ("{", "[]", stored.read_text().replace('"size"', '"sise"', 1)):
        stored.write_text(damage)
        assert load_index(str(folder), cache=cache).counts.tolist() == [3, 5]
    assert scanned[3:] == [*["000000.tar", "000001.tar"] * 2, "000000.tar"]  # a damaged entry costs a scan of its own


def test_the_first_of_several_ranks_scans_for_all(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ldm_vae.data.shards.describe as describing

    scanned: list[str] = []
    start = threading.Barrier(4)

    def slow_scan(url: str) -> Scan:
        scanned.append(Path(url).name)
        time.sleep(0.05)  # long enough that all would scan
        return scan_shard(url)

    def load(_: int) -> list[int]:
        start.wait()
        return load_index(str(folder), cache=tmp_path / "run" / "index").counts.tolist()

    monkeypatch.setattr(describing, "scan_shard", slow_scan)
    folder = make_shards(tmp_path / "shards", [3, 4])
    with ThreadPoolExecutor(4) as ranks:
        assert list(ranks.map(load, range(4))) == 4 * [[3, 4]]
    assert scanned == ["000000.tar", "000001.tar"]


def broken(tmp_path: Path, kind: str, write_tar: WriteTar) -> None:
    """One kind of unfit shard at tmp_path/0.tar."""
    path = write_tar(tmp_path / "0.tar", {f"{i}.jpg": bytes([i]) * 600 for i in range(1, 10)})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    match kind:
        case "no tar":
            path.write_bytes(b"\xff\xd8 a picture" * 100)
        case "zero bytes":
            path.write_bytes(b"")
        case "empty":
            write_tar(path, {})
        case "cut in a member":
            path.write_bytes(whole[: 3 * 1536 + 700])
        case "cut in a header":
            path.write_bytes(whole[: 3 * 1536 + 100])
        case "cut between members":
            path.write_bytes(whole[: 3 * 1536])
        case "damaged header":
            damaged[3 * 1536 + 5] ^= 1
            path.write_bytes(damaged)
        case "duplicate":
            with tarfile.open(path, "a") as archive:
                info = tarfile.TarInfo("3.jpg")
                archive.addfile(info, io.BytesIO(b""))
        case "interleaved":
            write_tar(path, {"a.jpg": b"", "b.jpg": b"", "a.cls": b"", "b.cls": b""})
        case "upwards":
            write_tar(path, {"../a.jpg": b""})
        case "absolute":
            write_tar(path, {"/etc/a.jpg": b""})
        case "link" | "hard link" | "device" | "pipe":
            with tarfile.open(path, "a") as archive:
                info = tarfile.TarInfo("x.jpg")
                kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
                info.type, info.linkname = kinds.get(kind, tarfile.FIFOTYPE), "/etc/passwd"
                archive.addfile(info)
        case "gigabyte header":
            info = tarfile.TarInfo("././@LongLink")
            info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
            path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + whole)
            os.truncate(path, 2**30 + 2**20)  # sparse: the bytes are there to be read, and must not be
        case "endless pax":
            info = tarfile.TarInfo("x")
            info.type, info.size = tarfile.XHDTYPE, 512
            path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"0 path=a\n".ljust(512, b"x") + whole)
        case "negative size":
            info = tarfile.TarInfo("x.jpg")
            info.size = -512
            path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + whole)


@pytest.mark.parametrize(
    ("kind", "reason", "samples"),
    [
        ("no tar", "no tar", 0),
        ("zero bytes", "empty file", 0),
        ("cut in a member", "truncated: member '4.jpg'", 3),
        ("cut in a header", "cut off at byte 4708", 3),
        ("cut between members", "the end mark is missing", 3),
        ("damaged header", "no member at byte 4608", 3),
        ("duplicate", "3.jpg: its key appeared before", 9),
        ("interleaved", "a.cls: its key appeared before", 2),
        ("upwards", "leaves its folder", 0),
        ("absolute", "leaves its folder", 0),
        ("link", "x.jpg: a symbolic link", 9),
        ("hard link", "x.jpg: a hard link", 9),
        ("device", "x.jpg: a device", 9),
        ("pipe", "x.jpg: a pipe", 9),
        ("gigabyte header", "a header record of 1073741824 bytes", 0),
        ("endless pax", "damaged pax record", 0),
        ("negative size", "of -512 bytes", 0),
    ],
)
def test_unfit_shards_are_refused_by_name(
    tmp_path: Path, write_tar: WriteTar, kind: str, reason: str, samples: int
) -> None:
    broken(tmp_path, kind, write_tar)
    with pytest.raises(UserError, match="ldm-vae check") as error:
        load_index(str(tmp_path))
    assert "0.tar" in error.value.what and reason in error.value.what
    assert scan_shard(str(tmp_path / "0.tar")).shard.samples == samples  # what is whole is still known
    with pytest.raises(UserError):
        write_index(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(bytes(10240)), "no tar, but gzip: unpack it with `gzip -dc FILE > NEW.tar`"),
        (gzip.compress(os.urandom(10240)), "gzip"),
        (bz2.compress(bytes(10240)), "bzip2"),
        (lzma.compress(bytes(10240)), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "zstd"),
        (b"PK\x03\x04" + bytes(2000), "zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
    ],
    ids=["gzip", "random gzip", "bzip2", "xz", "zstd", "zip", "git lfs", "web page"],  # each process makes other bytes
)
def test_what_is_named_tar_and_is_none_says_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(UserError) as error:
        load_index(str(tmp_path))
    assert said in error.value.what


def test_a_name_that_looks_like_a_web_page_is_read(tmp_path: Path, write_tar: WriteTar) -> None:
    write_tar(tmp_path / "0.tar", {"<a>.jpg": b"1", "BZh.jpg": b"2"})
    assert load_index(str(tmp_path)).samples == 2


def test_gzip_named_tar(test_data: Path) -> None:
    with pytest.raises(UserError, match="no tar, but gzip"):
        load_index(str(test_data / "data" / "failing" / "gzip_named.tar"))


def test_empty_shard_is_refused(tmp_path: Path, write_tar: WriteTar) -> None:
    broken(tmp_path, "empty", write_tar)
    with pytest.raises(UserError, match="is empty"):
        load_index(str(tmp_path))


def test_interleaved_members_still_meet_in_the_index(tmp_path: Path, write_tar: WriteTar) -> None:
    broken(tmp_path, "interleaved", write_tar)
    shard = scan_shard(str(tmp_path / "0.tar")).shard
    assert [set(shard.fields(i)) for i in range(2)] == [{"jpg", "cls"}] * 2


def test_index_older_than_the_shards(tmp_path: Path, make_shards: MakeShards) -> None:
    folder = make_shards(tmp_path / "a", [2, 3])
    write_index(folder)
    os.truncate(folder / "000001.tar", 2048)
    with pytest.raises(UserError, match=r"000001.tar has 2048 bytes, its index says"):
        load_index(str(folder))
    (folder / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"lists 000001.tar, which is not there"):
        load_index(str(folder))
    assert load_index(str(folder / "000000.tar")).samples == 2
    (folder / "000000.tar").rename(folder / "000009.tar")
    with pytest.raises(UserError, match=r"does not list 000009.tar"):
        load_index(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(name="../000000.tar"),
        lambda entry: entry.update(name=""),
        lambda entry: entry.update(samples=1),
        lambda entry: entry.update(keys=["a", 1]),
        lambda entry: entry["members"]["png"].update(offset=[512, 10**9]),
        lambda entry: entry["members"]["png"].update(offset=[512, 10**30]),
        lambda entry: entry["members"]["png"].update(size=[1]),
        lambda entry: entry.pop("members"),
    ],
)
def test_an_index_is_not_believed(
    tmp_path: Path, make_shards: MakeShards, change: Callable[[dict[str, Any]], object]
) -> None:
    path = write_index(make_shards(tmp_path / "a", [2]))
    content = json.loads(path.read_text())
    change(content["shards"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="index"):
        load_index(str(path.parent))


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"format": "other", "version": 1, "shards": []}'])
def test_what_is_no_index(tmp_path: Path, make_shards: MakeShards, text: str) -> None:
    folder = make_shards(tmp_path / "a", [2])
    (folder / "index.json").write_text(text)
    with pytest.raises(UserError, match="is no index of shards"):
        load_index(str(folder))
