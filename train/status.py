"""What a run is doing, for people and scripts (status.json), and that only one trainer does it (a lock)."""

from __future__ import annotations

import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout

from ldm_vae.atomic import atomic_file
from ldm_vae.errors import UserError

Status = Literal["running", "done", "preempted", "failed"]
# A server of network files frees the lock of a crashed node after its lease, 90 s by default on Linux.
LEASE = 120.0  # seconds that a trainer waits for the lock of another host
logger = logging.getLogger(__name__)


def write_status(run: Path, status: Status, reason: str = "", *, main: bool = True) -> None:
    """Replaces RUN/status.json: {"status", "reason", "host", "pid", "updated"}, all strings but pid.

    Every rank may call it. Those but the main one have a say only when they fail; the first failure of a run is the
    one that stays, as the others are mostly about the loss of the first.
    """
    if status != "failed" and not main:
        return
    if status == "failed" and read_status(run).get("status") == "failed":
        return
    content = {
        "status": status,
        "reason": " ".join(reason.split()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with atomic_file(run / "status.json") as stage:
        stage.write_text(json.dumps(content, indent=1) + "\n")


def read_status(run: Path) -> dict[str, Any]:
    """The content of status.json; empty where there is none. A run killed outright still says "running"."""
    try:
        return dict(json.loads((run / "status.json").read_bytes()))
    except FileNotFoundError:
        return {}


class RunLock:
    """`with RunLock(run, main=...):` one trainer per run folder. The main process holds the lock, for all ranks.

    The system frees it when that process ends, however it ends. Makes the folder. Raises UserError where another
    trainer holds it.
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
                "wait for its end, stop it, or give another output folder",
            ) from None
