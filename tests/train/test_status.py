"""status.json and the lock of a run folder, with real processes that hold it and die."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm_vae.errors import UserError
from train import status
from train.status import RunLock, read_status, write_status


def test_status_is_replaced_and_names_the_process(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    write_status(tmp_path, "running")
    write_status(tmp_path, "preempted", "SIGTERM at step 7")
    found = read_status(tmp_path)
    assert (found["status"], found["reason"], found["pid"]) == ("preempted", "SIGTERM at step 7", os.getpid())
    assert json.loads((tmp_path / "status.json").read_text()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_first_failure_of_any_rank_stays(tmp_path: Path) -> None:
    write_status(tmp_path, "running")
    write_status(tmp_path, "done", main=False)
    assert read_status(tmp_path)["status"] == "running"
    write_status(tmp_path, "failed", "no such file:\n  a.tar", main=False)
    write_status(tmp_path, "failed", "connection closed by peer")
    assert (read_status(tmp_path)["status"], read_status(tmp_path)["reason"]) == ("failed", "no such file: a.tar")
    write_status(tmp_path, "running")  # started again
    assert (read_status(tmp_path)["status"], read_status(tmp_path)["reason"]) == ("running", "")


HOLDER = """
import os, pathlib, sys
from train.status import RunLock, write_status
run = pathlib.Path(sys.argv[1])
with RunLock(run, main=True):
    write_status(run, "running")
    worker = os.fork()  # as a DataLoader does
    if worker == 0:
        print(os.getpid(), flush=True)
    sys.stdin.readline()
    if worker == 0:
        os._exit(0)
"""


def holder(run: Path, before: str = "") -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", before + HOLDER, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_second_trainer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    first, worker = holder(run)
    with pytest.raises(UserError, match=f"run is in use by another trainer .process {first.pid} on ") as refused:
        RunLock(run, main=True).__enter__()
    assert "\n" not in str(refused.value)
    with RunLock(run, main=False):
        pass  # another rank of one trainer takes no lock
    first.kill()
    first.wait()
    os.kill(worker, 0)  # its data worker lives on for a while, and must not hold the lock
    with RunLock(run, main=True):
        assert read_status(run)["status"] == "running"  # all that a killed trainer could say
    first.communicate()


def test_the_lock_of_another_host_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = holder(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    end = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {first.pid}"])  # as the lease of a crashed node ends
    begun = time.monotonic()
    with RunLock(tmp_path, main=True):
        assert time.monotonic() - begun > 0.5
    assert "locked by process 1 on elsewhere" in caplog.text
    assert (
        f"the lock {tmp_path / '.lock'} is held since " in caplog.text
        and "end the process that holds it" in caplog.text
    )
    end.wait()
    first.communicate()


def test_a_disk_that_fails_at_the_lock_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error") as failed:
        RunLock(tmp_path, main=True).__enter__()
    assert failed.value.filename == str(tmp_path / ".lock")


NO_LOCKS = """
import errno, fcntl, os
def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""


def test_without_locks_a_killed_run_goes_on_at_once_and_one_from_elsewhere_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, worker = holder(tmp_path, NO_LOCKS)

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(status, "LEASE", 0.0)
    mark = tmp_path / ".lock.held"
    with pytest.raises(UserError, match=f"process {first.pid} on .*{mark} is held since .*remove {mark}"):
        RunLock(tmp_path, main=True).__enter__()
    first.kill()
    first.wait()
    os.kill(worker, 0)
    assert mark.exists()
    with RunLock(tmp_path, main=True):
        pass
    assert not mark.exists()
    first.communicate()
    mark.write_text("00000000-1-00000000-0 2026-01-01 00:00:00 UTC")  # of another container
    with pytest.raises(UserError, match=f"remove {mark} if there is none"):
        RunLock(tmp_path, main=True).__enter__()
    assert f"remove {mark}" in caplog.text  # before the wait
