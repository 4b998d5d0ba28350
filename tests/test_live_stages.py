"""Stages of the living stay and those of the dead go, whatever host name, process number and clock say."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ldm_vae import stages
from ldm_vae.atomic import atomic_file, atomic_folder, find_foreign, remove_abandoned
from ldm_vae.locks import NO_LOCKS
from tests.conftest import ROOT

NAMESPACES = ["unshare", "--user", "--map-root-user", "--pid", "--uts", "--mount-proc", "--fork", "--kill-child"]
# Says when it is in mid-write, and goes on at a line on stdin. `silent` disks have no locks.
WRITER = """
import errno, fcntl, os, socket, sys
from pathlib import Path
final, kind, disk = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if disk == "silent":
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock = flock
from ldm_vae.atomic import atomic_file, atomic_folder
writer = atomic_file if kind == "file" else atomic_folder
with writer(final) as stage:
    part = stage if kind == "file" else stage / "part"
    part.write_text("first half, ")
    if len(sys.argv) > 4:
        os.utime(part, (int(sys.argv[4]),) * 2)
        os.utime(stage, (int(sys.argv[4]),) * 2)
    print(socket.gethostname(), os.getpid(), stage.name, flush=True)
    sys.stdin.readline()
    with part.open("a") as file:
        file.write("second half")
"""
WHOLE = "first half, second half"
Process = subprocess.Popen[str]
Start = Callable[..., tuple[Process, list[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a writer, and gives its process and what it says once it is in mid-write: host, process number, stage."""
    processes = []

    def start(*words: object, prefix: list[str] | None = None) -> tuple[Process, list[str]]:
        process = subprocess.Popen(
            [*(prefix or []), sys.executable, "-c", WRITER, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().split()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def content(final: Path) -> str:
    return (final / "part" if final.is_dir() else final).read_text()


@pytest.fixture(scope="module")
def namespaces() -> list[str]:
    try:
        done = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode:
        pytest.skip(f"namespaces are not permitted here: {done.stderr.strip()}")
    return NAMESPACES


@pytest.mark.parametrize("disk", ["locks", "silent"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_containers_of_one_host_name_and_process_number_spare_each_other(
    tmp_path: Path,
    start: Start,
    namespaces: list[str],
    injected: Callable[[str, int], None],
    kind: str,
    disk: str,
) -> None:
    first, said = start(tmp_path / "first", kind, disk, prefix=namespaces)
    second, also = start(tmp_path / "second", kind, disk, prefix=namespaces)
    assert said[:2] == also[:2]  # the same host name and process number
    second.communicate("\n")
    assert second.returncode == 0
    third, _ = start(tmp_path / "third", kind, disk)  # on the machine itself
    third.communicate("\n")
    assert said[2] in names(tmp_path)
    first.communicate("\n")
    assert first.returncode == third.returncode == 0
    assert [content(tmp_path / name) for name in ("first", "second", "third")] == [WHOLE] * 3
    assert names(tmp_path) == {"first", "second", "third"}
    disks = {"locks": "", "silent": ", on a disk without locks"}
    injected(f"two containers of one host name and process number write a {kind} each{disks[disk]}", 1)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_next_writer_removes_at_once_what_a_killed_one_left(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start: Start,
    injected: Callable[[str, int], None],
    kind: str,
    *,
    elsewhere: bool,
) -> None:
    """Also of another container on this machine, of whose process numbers this process knows nothing."""
    prefix = request.getfixturevalue("namespaces") if elsewhere else []
    process, said = start(tmp_path / "killed", kind, "locks", prefix=prefix)
    assert list(find_foreign(tmp_path, [])) == sorted(tmp_path.iterdir())
    process.kill()
    process.communicate()
    while elsewhere and stages.is_abandoned(tmp_path / said[2]) is False:
        pass  # the kernel ends the container a moment later than the process that has started it
    assert said[2] in names(tmp_path)
    assert list(find_foreign(tmp_path, [])) == []
    with atomic_file(tmp_path / "next") as stage:
        stage.write_text("")
        assert said[2] not in names(tmp_path)
    assert names(tmp_path) == {"next"}
    injected(f"SIGKILL to the writer of a {kind}{' in another container' if elsewhere else ''}", 1)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("time", [1, 2**33])  # in 1970, in 2242
def test_no_time_of_change_makes_a_writer_dead_or_alive(
    tmp_path: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    time: int,
) -> None:
    monkeypatch.setattr("ldm_vae.writers.HOST", "00000000")  # as if it were another machine's, which goes by time
    alive, said = start(tmp_path / "alive", kind, "locks", time)
    killed, left = start(tmp_path / "killed", kind, "locks", time)
    killed.kill()
    killed.communicate()
    remove_abandoned(tmp_path)
    assert said[2] in names(tmp_path)
    assert left[2] not in names(tmp_path)
    alive.communicate("\n")
    assert content(tmp_path / "alive") == WHOLE
    assert names(tmp_path) == {"alive"}


def test_a_stage_without_a_lock_goes_by_the_clock_of_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of earlier versions, and of disks without locks."""
    old, young, later = (tmp_path / f".tmp-00000000-1-00000000-{number}-name" for number in range(3))
    for stage, time in ((old, 1), (young, None), (later, 2**33)):
        stage.write_text("")
        if time is not None:
            os.utime(stage, (time, time))
    monkeypatch.setattr("time.time", lambda: 2.0**34)  # the local clock is ahead
    remove_abandoned(tmp_path)
    assert names(tmp_path) == {young.name, later.name}
    monkeypatch.setattr(stages, "FOREIGN_STAGE_AGE", -1.0)  # as if an hour had passed since they were written
    remove_abandoned(tmp_path)
    assert names(tmp_path) == set()


def test_a_stage_of_another_machine_stays_for_an_hour_where_locks_reach_no_further(tmp_path: Path) -> None:
    """Some network disks keep locks to each machine: that it can be taken here says nothing."""
    stage, lock = (tmp_path / f".tmp-00000000-1-00000000-0{end}" for end in ("-name", ".lock"))
    stage.write_text("")
    lock.write_text("another start of another kernel")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == {stage.name, lock.name}
    for path in (stage, lock):
        os.utime(path, (1, 1))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("number", NO_LOCKS)
def test_where_there_are_no_locks_files_and_folders_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_folder(tmp_path / "folder") as stage:
        (stage / "part").write_text("whole")
        with atomic_file(tmp_path / "file") as other:
            other.write_text("whole")
    assert names(tmp_path) == {"folder", "file"}
    assert content(tmp_path / "folder") == content(tmp_path / "file") == "whole"


def test_a_disk_that_fails_at_the_lock_is_named_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error") as failed, atomic_file(tmp_path / "file"):
        pytest.fail("unreachable")
    assert str(tmp_path) in str(failed.value.filename)
    assert names(tmp_path) == set()


FORKING = """
import os, signal, subprocess, sys
from pathlib import Path
from ldm_vae.atomic import atomic_folder
final = Path(sys.argv[1])
with atomic_folder(final) as stage:
    (stage / "part").write_text("whole")
    if sys.argv[2] == "program":
        print(subprocess.Popen(["cat"], close_fds=False).pid, flush=True)
        signal.pause()
    child = os.fork()
    if child == 0 and sys.argv[2] == "lives":
        print(os.getpid(), flush=True)
        sys.stdin.readline()
        os._exit(0)
    if child == 0:
        sys.exit(3)  # through the end of the block
    if sys.argv[2] == "lives":
        sys.stdin.readline()
    assert os.waitpid(child, 0)[1] == 3 << 8
    assert (stage / "part").read_text() == "whole"
    lock = next(final.parent.glob(".tmp-*.lock"))
"""


def forking(final: Path, child: str) -> Process:
    return subprocess.Popen(
        [sys.executable, "-c", FORKING, str(final), child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("child", ["lives", "program"])
def test_no_child_holds_the_lock_of_its_dead_parent(tmp_path: Path, child: str) -> None:
    """Neither a forked one, as a data worker is, nor another program."""
    parent = forking(tmp_path / "final", child)
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == 2  # the stage of a parent that lives, and its lock
    parent.kill()
    parent.wait()
    os.kill(number, 0)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == set()
    parent.communicate()


def test_a_forked_child_that_fails_takes_neither_stage_nor_lock_along(tmp_path: Path) -> None:
    parent = forking(tmp_path / "final", "fails")
    parent.communicate()
    assert parent.returncode == 0
    assert content(tmp_path / "final") == "whole"
    assert names(tmp_path) == {"final"}


def test_a_writer_whose_lock_was_taken_before_it_was_held_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may look in the moment between the making of a lock and its taking."""
    real = fcntl.flock
    looked: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not looked:
            looked.append(descriptor)
            remove_abandoned(tmp_path)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_file(tmp_path / "file") as stage:
        stage.write_text("whole")
        assert len(names(tmp_path)) == 2  # the stage, and a lock that has its name
        remove_abandoned(tmp_path)
        assert len(names(tmp_path)) == 2
    assert looked
    assert content(tmp_path / "file") == "whole"
    assert names(tmp_path) == {"file"}
