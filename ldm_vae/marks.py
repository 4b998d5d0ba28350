"""Stands in for locks where the file system has none: a file `NAME.held`, which its holder touches every few seconds.

The mark of a process that is known to be dead is void at once. That of any other is void when nobody has touched it
for a minute, by the clock of the file system.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

from ldm_vae.writers import is_dead, seconds_unchanged, signature

TOUCHED = 10.0  # seconds from one touch of a mark to the next
VOID = 60.0  # seconds without a touch: six were left out, so a holder that is merely slow keeps its mark
LOOK = 0.5  # seconds from one look at a mark to the next: each writes a file, to know the time
SILENCE = 5.0  # seconds of waiting that nobody asks about
logger = logging.getLogger(__name__)


class Held(Exception):
    """Another process, or another thread, holds a lock. The text names the file and says since when.

    since: as a person reads it, by the clock of the file system; "" where that is unknown.
    remedy: what to do where that holder should be gone.
    alive: whether the holder lives for sure.
    """

    def __init__(self, path: Path, since: str, remedy: str, *, alive: bool) -> None:
        super().__init__(f"the lock {path} is held{f' since {since}' if since else ''}")
        self.remedy, self.alive = remedy, alive


class Patience:
    """Waits a little before each new try to get what another holds, and raises that `Held` when its time is up.

    seconds: the most; None waits for ever, and says so once.
    """

    def __init__(self, seconds: float | None) -> None:
        self._begun, self._seconds, self._told = time.monotonic(), seconds, False

    def wait(self, held: Held, pause: float) -> None:
        """pause: seconds to the next try."""
        waited = time.monotonic() - self._begun
        if self._seconds is not None and waited >= self._seconds:
            raise held
        if not self._told and waited > SILENCE:
            logger.warning("%s: waiting; if this does not end, %s", held, held.remedy)
            self._told = True
        time.sleep(pause)


@contextmanager
def marked(path: Path, patience: Patience) -> Iterator[None]:
    """Holds the mark of a lock. Raises Held when the patience ends."""
    mark = path.with_name(f"{path.name}.held")
    while (mine := _make(mark)) is None:
        theirs = _read(mark)
        if _void(mark, theirs):
            _remove(mark, theirs)
        else:
            alive = _dead(theirs) is False
            remedy = f"end the process that holds it, or remove {mark} if there is none; this disk has no locks (flock)"
            if not alive:
                remedy += f", so the mark of a killed process holds for {VOID:.0f} s"
            patience.wait(Held(mark, theirs.partition(" ")[2], remedy, alive=alive), LOOK)
    holder, done = os.getpid(), Event()
    Thread(target=_touch, args=(mark, done), daemon=True).start()
    try:
        yield
    finally:
        if os.getpid() == holder:  # a forked child holds nothing
            done.set()
            with suppress(OSError):  # it is void with this process; an earlier error is the one to tell
                _remove(mark, mine)


def _make(mark: Path) -> str | None:
    """The content of the new mark: a signature, and since when. None where there is a mark."""
    try:
        descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    try:
        with os.fdopen(descriptor, "w") as file:
            content = f"{signature()} {moment(os.fstat(descriptor).st_mtime)}"
            file.write(content)
    except BaseException:
        mark.unlink()
        raise
    return content


def _read(mark: Path) -> str:
    try:
        return mark.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _dead(content: str) -> bool | None:
    host, pid, token, *_ = *content.split("-", 3), "", "", ""
    return is_dead(host, int(pid), token) if pid.isascii() and pid.isdecimal() else None


def _void(mark: Path, content: str) -> bool:
    dead = _dead(content)
    try:
        return seconds_unchanged(mark) > VOID if dead is None else dead
    except FileNotFoundError:
        return False  # gone just now: the next try will tell


def _remove(mark: Path, content: str) -> None:
    """Removes a mark of this content. That of a process that was quicker gets its name back."""
    aside = mark.with_name(f".tmp-{signature()}-mark")
    try:
        mark.replace(aside)
    except FileNotFoundError:
        return
    if _read(aside) == content:
        aside.unlink()
    else:
        aside.replace(mark)


def _touch(mark: Path, done: Event) -> None:
    while not done.wait(TOUCHED):
        with suppress(OSError):  # the next touch may reach the disk
            os.utime(mark)


def moment(seconds: float) -> str:
    """A time of a file, as a person reads it."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
