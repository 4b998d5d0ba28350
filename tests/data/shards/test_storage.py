from pathlib import Path

import fsspec
import pytest

from ldm_vae.data.shards import remote, storage
from ldm_vae.data.shards.retry import Missing, Unreachable
from ldm_vae.data.shards.storage import RangeReader, expand_shards, read_whole
from ldm_vae.errors import UserError
from tests.data.conftest import ReadRange


def test_ranges_of_local_files(read_range: ReadRange, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10
    (tmp_path / "a").write_bytes(content)
    assert read_range(str(tmp_path / "a"), 100, 700) == content[100:800]
    assert read_whole(str(tmp_path / "a")) == content
    with pytest.raises(Missing, match="ends at byte 2560, 10 bytes too early"):
        read_range(str(tmp_path / "a"), 2500, 70)
    with pytest.raises(Missing, match="FileNotFoundError"):
        read_range(str(tmp_path / "b"), 0, 1)


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "OPEN_FILES", 3)
    paths = [tmp_path / f"{i}" for i in range(10)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i] * 4))
    source = RangeReader()
    for _ in range(2):
        assert [source.read(str(path), 1, 2) for path in paths] == [bytes([i, i]) for i in range(10)]
        assert len(source._files) == 3
    assert source.reads == 20
    source.close()
    assert not source._files


def test_any_file_system_of_fsspec(read_range: ReadRange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST_BYTES", 7)
    filesystem = fsspec.filesystem("memory")
    content = bytes(range(100))
    for name in ("b", "a"):
        filesystem.pipe_file(f"/folder/{name}.tar", content)
    assert read_range("memory://folder/a.tar", 3, 90) == content[3:93]
    assert read_whole("memory://folder/a.tar") == content
    assert expand_shards("memory://folder/*.tar") == ["memory:///folder/a.tar", "memory:///folder/b.tar"]
    with pytest.raises(Missing):
        read_range("memory://folder/c.tar", 0, 1)


def test_an_error_of_a_file_system_is_no_missing_file(read_range: ReadRange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file system has errors of its own. Neither one of these nor one in our code may replace samples."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/folder/a.tar", bytes(100))

    def fails(path: str, **options: object) -> bytes:
        raise KeyError("of the library")

    monkeypatch.setattr(filesystem, "cat_file", fails)
    with pytest.raises(Unreachable, match="KeyError: 'of the library'"):
        read_range("memory://folder/a.tar", 0, 10)
    monkeypatch.setattr(filesystem, "cat_file", lambda path, **options: 7)  # bytes that our code cannot count
    with pytest.raises(TypeError):
        read_range("memory://folder/a.tar", 0, 10)
    monkeypatch.setattr(filesystem, "info", lambda path: {"name": path})
    with pytest.raises(UserError, match="does not tell its size"):
        read_whole("memory://folder/a.tar")


def test_folder_glob_braces_and_file(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{i:03d}.tar") for i in range(12)]
    for name in [*names, str(tmp_path / "notes.txt")]:
        Path(name).touch()
    assert expand_shards(str(tmp_path)) == names
    assert expand_shards(f"file://{tmp_path}") == names
    assert expand_shards(str(tmp_path / "00*")) == names[:10]
    assert expand_shards(str(tmp_path / "{009..011}.tar")) == names[9:]
    assert expand_shards(str(tmp_path / "{001,000}.tar")) == names[:2]
    assert expand_shards(names[3]) == [names[3]]
    assert expand_shards("https://host/data-{0..2}.tar") == [f"https://host/data-{i}.tar" for i in range(3)]
    assert expand_shards("https://host/folder/") == ["https://host/folder"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("pipe:cat {0..3}.tar", "never run"),
        ("TMP/absent", "not found"),
        ("TMP/{0..1}.tar", "0.tar not found, and 1 more"),
        ("TMP/{0..1.tar", "brace"),
        ("TMP/a.tar::TMP/a.tar", "not found"),
        ("TMP/{a,a}.tar", "twice"),
        ("TMP/{a,b,a,b}.tar", "a.tar twice, and 1 more"),
        ("TMP/*.zip", "no shards"),
        ("TMP/empty", "no shards"),
    ],
)
def test_what_names_no_shards(tmp_path: Path, spec: str, named: str) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".tmp-0-1-2-3-b.tar").write_bytes(b"")  # of a writer that was killed
    with pytest.raises(UserError, match=named):
        expand_shards(spec.replace("TMP", str(tmp_path)))


def test_missing_package_and_unknown_protocol_name_the_remedy(read_range: ReadRange) -> None:
    with pytest.raises(UserError, match=r"ldm-vae\[s3\]"):
        read_range("s3://bucket/a.tar", 0, 1)
    with pytest.raises(UserError, match="use a path"):
        read_range("gopher://host/a.tar", 0, 1)
