"""Whole or not there: order of flush and rename, what dead writers leave, full disks. Real files and processes."""

from __future__ import annotations

import errno
import functools
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from ldm_vae import atomic
from ldm_vae.atomic import append, atomic_file, atomic_folder, fsync_path, refuse_foreign, remove_folder
from ldm_vae.errors import UserError
from ldm_vae.stages import FOREIGN_STAGE_AGE
from ldm_vae.writers import HOST


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_file_is_replaced_whole_and_keeps_its_suffix(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folder" / "picture.png"
    for content in ("first", "second"):
        with atomic_file(final) as stage:
            assert stage.suffix == ".png"  # encoders choose the format by it
            stage.write_text(content)
            assert content == "first" or final.read_text() == "first"
        assert final.read_text() == content
    assert names(final.parent) == {"picture.png"}


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    final = tmp_path / "export"
    for content in ("first", "second"):
        with atomic_folder(final, ours=["vae/*.txt"]) as stage:
            (stage / "vae").mkdir()
            (stage / "vae" / f"{content}.txt").write_text(content)
        assert names(final / "vae") == {f"{content}.txt"}
    assert names(tmp_path) == {"export"}


Writer = Callable[[Path], AbstractContextManager[Path]]
replace_folder = functools.partial(atomic_folder, ours=["part"])


@pytest.mark.parametrize("writer", [atomic_file, replace_folder])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_and_no_stage(tmp_path: Path, writer: Writer, error: type[BaseException]) -> None:
    final = tmp_path / "name"
    with writer(final) as stage:
        (stage if writer is atomic_file else stage / "part").write_text("old")
    with pytest.raises(error), writer(final) as stage:  # noqa: PT012  the block is what is under test
        (stage if writer is atomic_file else stage / "part").write_text("new")
        raise error
    assert (final if writer is atomic_file else final / "part").read_text() == "old"
    assert names(tmp_path) == {"name"}


def test_everything_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        real_replace(source, target)
        events.append(("rename", Path(target).name))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic_folder(tmp_path / "final") as stage:
        (stage / "inner").mkdir()
        (stage / "inner" / "a").write_text("a")
        (stage / "b").write_text("b")
    renamed = events.index(("rename", "final"))
    assert {name for kind, name in events[:renamed] if kind == "fsync"} >= {"a", "b", "inner", stage.name}
    assert ("fsync", tmp_path.name) in events[renamed:]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path) -> None:
    folder = Path("/proc/self")
    descriptor = os.open(folder, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(descriptor)  # the path under test: what some network disks answer
    os.close(descriptor)
    fsync_path(folder)
    with pytest.raises(FileNotFoundError):
        fsync_path(tmp_path / "missing")


WRITER = """
import os, sys, pathlib
from ldm_vae.atomic import atomic_folder
with atomic_folder(pathlib.Path(sys.argv[1])) as stage:
    (stage / "part").write_text("half")
    print(stage.name, flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "die":
        os._exit(9)
"""


def writer_process(final: Path, end: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(final), end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_the_next_writer_removes_stages_of_the_dead_alone(tmp_path: Path) -> None:
    dead, dead_stage = writer_process(tmp_path / "dead", "die")
    alive, alive_stage = writer_process(tmp_path / "alive", "finish")
    dead.communicate("\n")
    (tmp_path / ".tmp-mine").write_text("not a stage")
    earlier_life = tmp_path / f".tmp-{HOST}-{os.getpid()}-00000000-0-reused_pid"
    earlier_life.mkdir()
    dead_lock, alive_lock = (f"{stage.rpartition('-')[0]}.lock" for stage in (dead_stage, alive_stage))
    assert names(tmp_path) == {dead_stage, dead_lock, alive_stage, alive_lock, ".tmp-mine", earlier_life.name}

    with atomic_file(tmp_path / "mine") as stage:
        stage.write_text("whole")
        with atomic_file(tmp_path / "nested") as other:  # a stage of this very process is alive too
            other.write_text("whole")
    assert names(tmp_path) == {alive_stage, alive_lock, ".tmp-mine", "mine", "nested"}
    alive.communicate("\n")
    assert alive.returncode == 0
    assert names(tmp_path) == {"alive", ".tmp-mine", "mine", "nested"}


def test_a_stage_of_another_host_goes_after_an_hour_of_silence(tmp_path: Path) -> None:
    foreign = tmp_path / ".tmp-00000000-1-00000000-0-name"
    foreign.mkdir()
    (foreign / "part").write_text("half")
    with atomic_file(tmp_path / "a") as stage:
        stage.write_text("")
    assert foreign.exists()
    hour_ago = foreign.stat().st_mtime - FOREIGN_STAGE_AGE - 60
    os.utime(foreign, (hour_ago, hour_ago))
    with atomic_file(tmp_path / "a") as stage:
        stage.write_text("")
    assert foreign.exists(), "a file in it is young: its writer may be at work"
    os.utime(foreign / "part", (hour_ago, hour_ago))
    with atomic_file(tmp_path / "a") as stage:
        stage.write_text("")
    assert names(tmp_path) == {"a"}


def test_a_replaced_folder_left_by_a_kill_goes_only_where_its_successor_stands(tmp_path: Path) -> None:
    for name in ("there", f"{atomic.REPLACED}there", f"{atomic.REPLACED}missing"):
        (tmp_path / name).mkdir()
    with atomic_file(tmp_path / "a") as stage:
        stage.write_text("")
    assert names(tmp_path) == {"a", "there", f"{atomic.REPLACED}missing"}


def write_part(final: Path, text: str) -> None:
    with replace_folder(final) as stage:
        (stage / "part").write_text(text)


def test_a_folder_is_replaced_without_a_moment_in_which_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "name"
    write_part(final, "old")
    (tmp_path / "other").mkdir()
    if not atomic._exchange(tmp_path / "other", final):
        pytest.skip("this file system cannot exchange names")
    assert (tmp_path / "other" / "part").read_text() == "old"
    assert atomic._exchange(tmp_path / "other", final)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        assert self != final, "the folder has lost its name"
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_part(final, "new")
    assert (final / "part").read_text() == "new"
    assert names(tmp_path) == {"name", "other"}


@pytest.mark.parametrize("fails", [False, True])
def test_without_an_exchange_a_folder_that_cannot_be_replaced_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    final = tmp_path / "name"
    write_part(final, "old")
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if fails and self.name.startswith(".tmp-") and target == final:
            raise OSError(errno.EIO, "Input/output error", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    with pytest.raises(OSError, match="Input/output error") if fails else nullcontext():
        write_part(final, "new")
    assert (final / "part").read_text() == ("old" if fails else "new")
    assert names(tmp_path) == {"name"}


def test_a_folder_whose_replacement_was_killed_gets_its_name_back(tmp_path: Path) -> None:
    final = tmp_path / "name"
    write_part(final, "old")
    final.rename(tmp_path / f"{atomic.REPLACED}name")  # what a kill between two renames leaves
    refuse_foreign(final, ["part"])
    assert (final / "part").read_text() == "old"
    assert names(tmp_path) == {"name"}


def test_the_first_error_is_told_where_the_room_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_usage(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    with pytest.raises(UserError, match=r"full.*make room"), atomic_file(tmp_path / "full"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_remove_folder(tmp_path: Path) -> None:
    (tmp_path / "old" / "inner").mkdir(parents=True)
    remove_folder(tmp_path / "old")
    remove_folder(tmp_path / "old")  # not there: nothing to do
    assert names(tmp_path) == set()


LIMIT = 64 * 1024  # bytes a file may have in the tests below


def test_a_write_error_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse the write (EFBIG), as a quota does; no root needed."""
    final = tmp_path / "file"
    with atomic_file(final) as stage:
        stage.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (LIMIT, before[1])
    )  # Python ignores SIGXFSZ, so write() returns the error
    try:
        with (
            pytest.raises(UserError, match=f"{final}.*File too large.*bytes free.*make room"),
            atomic_file(final) as stage,
        ):
            stage.write_bytes(bytes(2 * LIMIT))
        with (
            pytest.raises(UserError, match=r"131,072 bytes needed"),
            atomic_folder(tmp_path / "folder", needed=2 * LIMIT) as stage,
        ):
            (stage / "part").write_bytes(bytes(2 * LIMIT))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert final.read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    log, line = tmp_path / "log", "x" * (LIMIT // 2) + "\n"
    append(log, line)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))  # takes half of the second line
    try:
        with pytest.raises(UserError, match=f"{log}.*File too large.*make room"):
            append(log, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.read_text() == line
    append(log, line)
    assert log.read_text() == 2 * line


@pytest.mark.parametrize("folder", ["/proc/self/nothing", "file"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("in the way")
    final = tmp_path / folder / "name"
    with pytest.raises(UserError, match=f"cannot make the folder {final.parent}: "), atomic_file(final):
        pytest.fail("unreachable")


def test_a_folder_that_may_not_be_written_is_named() -> None:
    final = Path("/sys/kernel/name")  # refused to root, too
    with (
        pytest.raises(UserError, match=f"cannot write {final}.*(denied|Read-only|not permitted)"),
        atomic_file(final) as stage,
    ):
        stage.write_text("")
