"""The status of a run for people and scripts (status.json), and the lock that allows one trainer per run."""

from __future__ import annotations

import json
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout

from ldm_vae.atomic import atomic_file
from ldm_vae.documents import DamagedFile, read_json
from ldm_vae.errors import UserError
from ldm_vae.passwords import without_secrets

Status = Literal["running", "done", "preempted", "failed"]
# When a node crashes, a server of network files frees its lock after a lease, 90 s by default on Linux.
LEASE = 120.0  # seconds that a trainer waits for the lock of another host
logger = logging.getLogger(__name__)


def write_status(run: Path, status: Status, reason: str = "", *, main: bool = True) -> None:
    """Writes RUN/status.json: {"status", "reason", "host", "pid", "updated"}, all strings but pid.

    Every rank may call it, and ranks other than the main one write only failures. The first failure of a run stays in
    the file, because later ones mostly follow from it.
    """
    if status != "failed" and not main:
        return
    if status == "failed" and read_status(run).get("status") == "failed":
        return
    content = {
        "status": status,
        "reason": " ".join(without_secrets(reason).split()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with atomic_file(run / "status.json") as stage:
        stage.write_text(json.dumps(content, indent=1) + "\n")


def read_status(run: Path) -> dict[str, Any]:
    """The content of status.json; empty where there is none. A run that was killed still says "running"."""
    try:
        return read_json(run / "status.json", "remove it")
    except (FileNotFoundError, DamagedFile):  # the next status replaces what is damaged
        return {}


class RunLock:
    """`with RunLock(run, main=...):` allows one trainer per run folder. The main process holds the lock for all ranks.

    The system frees the lock when that process ends in any way. Makes the folder. Raises UserError where another
    trainer holds the lock.
    """

    def __init__(self, run: Path, *, main: bool) -> None:
        self.run, self.main = run, main
        self._lock = FileLock(run / ".lock")

    def __enter__(self) -> RunLock:
        if self.main:
            try:
                self.run.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
            except Timeout:
                self._wait_for_another_host()
            except OSError as error:
                raise UserError(
                    f"cannot write into the run folder {self.run}", f"{error.strerror}; give another output"
                ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.main:
            with suppress(OSError):  # the system frees it with the process; an earlier error is the one to tell
                self._lock.release()

    def _wait_for_another_host(self) -> None:
        holder = read_status(self.run)
        host, pid = holder.get("host", "an unknown host"), holder.get("pid", "unknown")
        here = host == socket.gethostname()
        if not here:
            logger.warning("%s is locked by process %s on %s: waiting up to %d s", self.run, pid, host, LEASE)
        try:
            self._lock.acquire(timeout=0 if here else LEASE)
        except Timeout:
            raise UserError(
                f"{self.run} is in use by another trainer (process {pid} on {host})",
                "wait until it ends, stop it, or give another output folder",
            ) from None
