"""The header before a content is compared with the index by its whole name, in every format and by every reader."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import SourceConfig, load_index, write_index
from ldm_vae.data.shards.samples import read_samples
from ldm_vae.data.stream.reader import DataConfig, train_batches, validation_batches
from tests.conftest import npy

FORMATS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
LONG = "folder/" * 20
XATTR = {"LIBARCHIVE.xattr.com.apple.quarantine": "x" * 5000}  # what bsdtar writes on a Mac, before the name or after


def write(path: Path, names: list[str], format: int, records: dict[str, str] | None = None) -> None:
    """A picture and a label for each name; labels and pictures tell which it is by its place in the list."""
    with tarfile.open(path, "w", format=format) as tar:
        for number, name in enumerate(names):
            for field, data in (("npy", npy(np.full((8, 8, 3), number, np.uint8))), ("cls", b"%d" % number)):
                info = tarfile.TarInfo(f"{name}.{field}")
                info.size, info.pax_headers = len(data), records or {}
                tar.addfile(info, io.BytesIO(data))


Reader = Callable[[Path], tuple[list[str], list[str]]]


def by_stream(folder: Path) -> tuple[list[str], list[str]]:
    """(keys that were read, reasons of those that were not)."""
    index = load_index(str(folder))
    config = DataConfig(
        train=(SourceConfig(shards=""),), batch=1, workers=0, image=ImageConfig(), broken_budget=index.samples
    )
    batches = validation_batches(config, index, batch=4, rank=0, world=1)
    return [key for batch in batches for key in batch.key], [fault.reason for fault in batches.faults]


def by_samples(folder: Path) -> tuple[list[str], list[str]]:
    found = [pair for shard in load_index(str(folder)).shards for pair in read_samples(shard)]
    reasons = [what for _, what in found if isinstance(what, str)]
    return [key for key, what in found if not isinstance(what, str)], reasons


@pytest.mark.parametrize("reader", [by_stream, by_samples])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("indexed", "present"),
    [
        (["größe", "weiß"], ["größe", "weiä"]),
        (["ä", "ö"], ["ö", "ä"]),  # swapped: other pictures and labels under known names
        ([LONG + "a", LONG + "b"], [LONG + "b", LONG + "a"]),
        ([LONG + "日本", LONG + "b"], [LONG + "日中", LONG + "b"]),
        (["a" * 96, "b"], ["a" * 95 + "c", "b"]),
        (["Aa", "b"], ["aA", "b"]),  # keys tell case apart
    ],
)
def test_other_names_are_seen(
    tmp_path: Path, reader: Reader, format: int, indexed: list[str], present: list[str]
) -> None:
    path = tmp_path / "0.tar"
    write(path, indexed, format)
    write_index(tmp_path)
    assert reader(tmp_path) == (indexed, [])
    size = path.stat().st_size
    write(path, present, format)
    assert path.stat().st_size == size
    read, reasons = reader(tmp_path)
    assert read == [name for name, now in zip(indexed, present, strict=True) if name == now]
    assert len(reasons) == len(indexed) - len(read)
    assert all("the index says" in reason and "the shard has" in reason for reason in reasons)


@pytest.mark.parametrize("reader", [by_stream, by_samples])
@pytest.mark.parametrize("name", ["a", "ä", LONG + "ä", "a" * 96, "why?", "b" * 1500])
def test_records_of_any_length_are_found(tmp_path: Path, reader: Reader, name: str) -> None:
    """Whole shards are read, however much stands between the header and the record with the name."""
    for format, records in ((tarfile.GNU_FORMAT, None), (tarfile.PAX_FORMAT, None), (tarfile.PAX_FORMAT, XATTR)):
        write(tmp_path / "0.tar", [name, name + "2"], format, records)
        write_index(tmp_path)
        assert reader(tmp_path) == ([name, name + "2"], [])


@pytest.mark.parametrize("reader", [by_stream, by_samples])
def test_a_record_far_before_the_header_decides(tmp_path: Path, reader: Reader) -> None:
    """The header alone shows the first 100 characters, and `?` for other alphabets: equal for both names."""
    for indexed, present in ((["a" * 96, "b"], ["a" * 96 + ".npy" * 9, "b"]), (["?", "b"], ["ä", "b"])):
        write(tmp_path / "0.tar", present, tarfile.PAX_FORMAT, XATTR)
        path = write_index(tmp_path)
        text = path.read_text()
        path.write_text(text.replace(present[0], indexed[0]).replace("\\u00e4", "?"))
        read, reasons = reader(tmp_path)
        assert read == ["b"] and len(reasons) == 1 and "the index says" in reasons[0]


def test_a_file_that_became_a_link_is_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.png", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 600 if name == "a.png" else 0
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    write_index(tmp_path)
    data = bytearray((tmp_path / "0.tar").read_bytes())
    info = tarfile.TarInfo("a.txt")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    at = data.index(b"a.txt")
    data[at : at + 512] = info.tobuf()
    (tmp_path / "0.tar").write_bytes(data)
    assert by_samples(tmp_path)[1] == ["the index says a file, the shard has a symbolic link"]


def test_one_read_brings_name_picture_and_label(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [LONG + str(number) for number in range(8)], tarfile.PAX_FORMAT)
    config = DataConfig(train=(SourceConfig(shards=""),), batch=8, workers=0, image=ImageConfig(), broken_budget=0)
    batches = train_batches(config, load_index(str(tmp_path)), 0, start_step=0, rank=0, world=1, accumulation=1)
    next(batches)
    assert batches.reads == 8
