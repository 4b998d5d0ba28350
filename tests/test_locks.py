"""Locks of files, and the marks that stand in for them, held by real processes that are killed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from ldm_vae import marks
from ldm_vae.locks import NO_LOCKS, exclusive
from ldm_vae.marks import Held
from tests.conftest import ROOT

HOLDER = """
import errno, fcntl, os, sys
from pathlib import Path
if len(sys.argv) > 2:
    def flock(descriptor, operation):
        raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
    fcntl.flock = flock
from ldm_vae.locks import exclusive
with exclusive(Path(sys.argv[1]), patience=0):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path, *words: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path: Path, injected: Callable[[str, int], None]) -> None:
    path = tmp_path / "lock"
    process = holder(path)
    with pytest.raises(Held, match=f"the lock {path} is held since .* UTC"), exclusive(path, patience=0):
        pytest.fail("unreachable")
    with pytest.raises(Timeout):  # earlier versions used this library, and both may run in one folder
        FileLock(path, timeout=0).acquire()
    process.kill()
    process.communicate()
    with exclusive(path, patience=0), pytest.raises(Held), exclusive(path, patience=0):
        pytest.fail("unreachable")
    with FileLock(path, timeout=0), pytest.raises(Held), exclusive(path, patience=0):
        pytest.fail("unreachable")
    assert path.read_bytes() == b""
    injected("SIGKILL to the holder of a lock", 1)


def test_a_lock_whose_file_was_removed_is_taken_of_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "lock", fcntl.flock
    removed: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(descriptor)
            path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(path, patience=1.0), pytest.raises(Timeout):
        FileLock(path, timeout=0).acquire()


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_a_mark_has_one_holder_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Callable[[str, int], None], number: int
) -> None:
    path, mark = tmp_path / "lock", tmp_path / "lock.held"
    process = holder(path, number)
    without_locks(monkeypatch, number)
    made = datetime.fromtimestamp(mark.stat().st_mtime, UTC)
    os.utime(mark, (1, 1))  # touches do not count
    since = f"the lock {mark} is held since {made:%Y-%m-%d %H:%M:%S} UTC"
    with pytest.raises(Held, match=since) as held, exclusive(path, patience=0):
        pytest.fail("unreachable")
    assert held.value.alive
    assert f"remove {mark}" in held.value.remedy
    process.kill()
    process.communicate()
    with exclusive(path, patience=0):
        assert mark.exists()
    assert not mark.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}
    injected(f"SIGKILL to the holder of a lock where flock answers {errno.errorcode[number]}", 1)


def test_a_mark_from_elsewhere_is_void_when_its_holder_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mark = tmp_path / "lock", tmp_path / "lock.held"
    without_locks(monkeypatch, errno.ENOLCK)
    monkeypatch.setattr("time.time", lambda: 2.0**34)  # the local clock is ahead
    for content in ("00000000-1-00000000-0", ""):  # of another container; killed before it had written a word
        mark.write_text(content)
        with pytest.raises(Held) as held, exclusive(path, patience=0):
            pytest.fail("unreachable")
        assert not held.value.alive
        assert f"remove {mark}" in held.value.remedy and "60 s" in held.value.remedy
        assert mark.read_text() == content
        old = mark.stat().st_mtime - marks.VOID - 1
        os.utime(mark, (old, old))
        with exclusive(path, patience=0):
            assert mark.read_text() != content
        assert not mark.exists()


def test_the_holder_of_a_mark_touches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mark = tmp_path / "lock", tmp_path / "lock.held"
    without_locks(monkeypatch, errno.ENOLCK)
    monkeypatch.setattr(marks, "TOUCHED", 0.001)
    with exclusive(path, patience=0):
        os.utime(mark, (1, 1))
        while mark.stat().st_mtime == 1:
            pass


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_disk_that_fails_at_the_lock_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    without_locks(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)) as failed, exclusive(tmp_path / "lock", patience=0):
        pytest.fail("unreachable")
    assert failed.value.filename == str(tmp_path / "lock")
