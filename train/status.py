"""The status of a run for people and scripts (status.json), and the lock that allows one trainer per run."""

from __future__ import annotations

import json
import logging
import os
import socket
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ldm_vae.atomic import atomic_file
from ldm_vae.documents import DamagedFile, read_json
from ldm_vae.errors import UserError
from ldm_vae.locks import exclusive
from ldm_vae.machine import FAULTS
from ldm_vae.marks import Held
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
        self._held = ExitStack()

    def __enter__(self) -> RunLock:
        if self.main:
            try:
                self.run.mkdir(parents=True, exist_ok=True)
                self._acquire(0)
            except Held as held:
                self._wait_for_another_host(held)
            except OSError as error:
                if error.errno in FAULTS:
                    raise  # says nothing about the folder
                raise UserError(
                    f"cannot write into the run folder {self.run}", f"{error.strerror}; give another output"
                ) from error
        return self

    def _acquire(self, patience: float) -> None:
        self._held.enter_context(exclusive(self.run / ".lock", patience=patience))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _wait_for_another_host(self, held: Held) -> None:
        holder = read_status(self.run)
        host, pid = holder.get("host", "an unknown host"), holder.get("pid", "unknown")
        here = host == socket.gethostname() and held.alive
        if not here:
            logger.warning(
                "%s is locked by process %s on %s: waiting up to %d s (%s; if that process has ended, %s)",
                *(self.run, pid, host, LEASE, held, held.remedy),
            )
        try:
            self._acquire(0 if here else LEASE)
        except Held as still:
            raise UserError(
                f"{self.run} is in use by another trainer (process {pid} on {host}; {still})",
                f"wait until it ends, give another output folder, or {still.remedy}",
            ) from None
