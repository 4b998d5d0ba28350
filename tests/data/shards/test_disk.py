"""What local files do: faults of the disk, pipes, limits of open files, and folders that cannot be listed."""

from __future__ import annotations

import errno
import glob
import logging
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ldm_vae.data.shards import retry
from ldm_vae.data.shards.disk import is_file, is_folder, listed, matching, on_disk, read_file, status
from ldm_vae.data.shards.retry import Forbidden, Missing, Unreachable
from ldm_vae.data.shards.storage import RangeReader, expand_shards
from ldm_vae.errors import UserError
from tests.data.conftest import ReadRange


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.0)


def fails(times: int, code: int) -> Callable[[], str]:
    """A call that fails so often and then gives "here"."""
    left = iter([code] * times)

    def call() -> str:
        if (number := next(left, None)) is not None:
            raise OSError(number, os.strerror(number))
        return "here"

    return call


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EAGAIN, errno.EINVAL])
def test_what_may_pass_is_tried_again_then_stops(code: int) -> None:
    assert on_disk("a", fails(retry.TRIES - 1, code)) == "here"
    with pytest.raises(Unreachable, match=os.strerror(code)):
        on_disk("a", fails(retry.TRIES, code))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP])
def test_what_is_not_there_is_missing_at_once(code: int) -> None:
    with pytest.raises(Missing):
        on_disk("a", fails(1, code))


def test_without_rights_it_stops_at_once_with_a_remedy() -> None:
    for code in (errno.EACCES, errno.EPERM):
        with pytest.raises(Forbidden, match=r"a may not be read .*: change its rights"):
            on_disk("a", fails(1, code))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rights_of_a_real_file(tmp_path: Path, read_range: ReadRange) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(100))
    (tmp_path / "a.tar").chmod(0)
    with pytest.raises(Forbidden):
        read_range(str(tmp_path / "a.tar"), 0, 10)


def test_memory_errors_pass() -> None:
    def call() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        on_disk("a", call)


def test_pipes_and_folders_are_no_files(tmp_path: Path, read_range: ReadRange) -> None:
    """Opening a pipe would wait for somebody to write into it."""
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for name, code in (("pipe.tar", "Illegal seek"), ("folder.tar", "Is a directory")):
        with pytest.raises(Missing, match=code):
            read_range(str(tmp_path / name), 0, 10)
    with pytest.raises(UserError, match=r"pipe\.tar not found"):
        expand_shards(str(tmp_path / "pipe.tar"))
    with pytest.raises(UserError, match=r"folder\.tar not found, and 1 more"):
        expand_shards(str(tmp_path))


@pytest.fixture
def few_files() -> Iterator[None]:
    """No file may be opened beyond those that are open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_limit_of_open_files_is_no_missing_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(100))
    reader = RangeReader()
    reader.read(str(paths[0]), 0, 10)
    request.getfixturevalue("few_files")
    assert reader.read(str(paths[1]), 0, 10) == bytes(10)  # its own open file makes way
    with pytest.raises(Unreachable, match="Too many open files"):
        RangeReader().read(str(paths[0]), 0, 10)


def test_a_stale_descriptor_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a file server restarts, reads of an open file fail for ever; those of a new descriptor do not."""
    (tmp_path / "a").write_bytes(b"content")
    reader = RangeReader()
    assert reader.read(str(tmp_path / "a"), 0, 7) == b"content"
    stale, pread = dict(reader._files), os.pread
    opened: list[int] = []
    real_open = os.open

    def opens(*arguments: object, **options: object) -> int:
        opened.append(real_open(*arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    def reads(descriptor: int, size: int, offset: int) -> bytes:
        if not opened and descriptor in stale.values():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "pread", reads)
    assert reader.read(str(tmp_path / "a"), 0, 7) == b"content" and len(opened) == 1


def test_a_disk_that_stays_away_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(retry, "NOTICE_AFTER", 0.0)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.05)
    caplog.set_level(logging.WARNING)
    assert on_disk("/disk/a.tar", fails(5, errno.EIO)) == "here"
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == ["waiting for /disk/a.tar"]


PATTERNS = ("*.tar", "**/*.tar", "*/*.tar", "a*/**/x.tar", "**", "[ab]/?.tar", ".*/*.tar", "c/*.tar", "*/c/../x.tar")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_glob_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    for name in ("a/x.tar", "a/c/x.tar", "b/y.tar", ".h/z.tar", "b/.hidden.tar", "top.tar", "c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "broken.tar").symlink_to(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    for prefix in ("", "./", f"{tmp_path}/"):
        expected = {path.rstrip("/") for path in glob.glob(prefix + pattern, recursive=True)}  # noqa: PTH207
        expected = {path for path in expected if Path(path).exists() and path not in ("", ".", str(tmp_path))}
        found = {path.rstrip("/") for path in matching(prefix + pattern)} - {"", ".", str(tmp_path)}
        assert found == expected


def test_a_folder_that_cannot_be_listed_ends_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """glob.glob would pass over it, and a data set would be smaller than it is."""
    for name in ("a/x.tar", "b/y.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    real = os.listdir

    def lists(folder: str) -> list[str]:
        if str(folder).endswith("/b"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(folder)

    monkeypatch.setattr(os, "listdir", lists)
    assert expand_shards(str(tmp_path / "a" / "*.tar"))
    with pytest.raises(Unreachable, match="/b cannot be read"):
        expand_shards(str(tmp_path / "*" / "*.tar"))


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert is_file(tmp_path / "a") and not is_folder(tmp_path / "a") and is_folder(tmp_path)
    assert status(tmp_path / "b") is None and listed(tmp_path) == ["a"] and read_file(tmp_path / "a") == b"x"
    with pytest.raises(Missing):
        read_file(tmp_path / "b")
    with pytest.raises(UserError, match="is gone"):
        listed(tmp_path / "b")
