"""Locks of files (flock), which the system frees when their holder ends, however it ends.

They belong to the process that has taken them: no program that it starts inherits one, and a child that Python forks
(a data worker) closes its copies at once, so that it does not keep the lock of a dead parent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_vae.marks import Held, Patience, marked, moment

# What file systems answer that have no locks: some network disks, and FUSE.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
REMEDY = "end the process that holds it (`fuser` names it on its machine)"
POLL = 0.05  # seconds from one try to the next
_open: set[Lockable] = set()
_forking = threading.RLock()  # no fork comes between the opening of a file and its entry in _open


class Lockable:
    """A file, opened to be locked. Closing it frees the lock. In a forked child it is closed."""

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        with _forking:
            self.descriptor: int | None = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            _open.add(self)

    def take(self, operation: int) -> bool | None:
        """Takes the lock: fcntl.LOCK_EX for one holder, LOCK_SH for several.

        False where another holds it, None where the file system has no locks. Raises OSError for any other fault.
        """
        assert self.descriptor is not None
        try:
            fcntl.flock(self.descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            if error.errno == errno.EACCES:  # as some systems say that another holds it
                return False
            error.filename = str(self.path)
            raise
        return True

    def linked(self) -> bool:
        """Whether the file has a name still. A lock on one without is nothing that others would meet."""
        assert self.descriptor is not None
        return os.fstat(self.descriptor).st_nlink > 0

    def close(self) -> None:
        with _forking:
            _open.discard(self)
            if self.descriptor is not None:
                with suppress(OSError):  # it is closed whatever the system says of it
                    os.close(self.descriptor)
            self.descriptor = None


@contextmanager
def exclusive(path: Path, *, patience: float | None = None) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is missing, stays, and is empty.

    Its time of change says since when it is held. Where the file system has no locks, a mark stands in (`marks.py`).

    patience: seconds to wait for another holder; None: as long as it takes.
    Raises Held if another still has it then, and OSError for faults of the machine.
    """
    waiting = Patience(patience)
    while True:
        file = Lockable(path, os.O_RDWR | os.O_CREAT)
        try:
            taken = file.take(fcntl.LOCK_EX)
            if taken is None:
                with marked(path, waiting):
                    yield
                return
            if taken and file.linked():
                with suppress(OSError):  # only messages go by the time
                    os.utime(path)
                yield
                return
        finally:
            file.close()
        if not taken:
            waiting.wait(Held(path, _since(path), REMEDY, alive=True), POLL)


def _since(path: Path) -> str:
    try:
        return moment(path.stat().st_mtime)
    except (OSError, OverflowError, ValueError):  # removed just now, or of a time that no calendar has
        return ""


def _in_child() -> None:
    """Closes the copies of a forked child. The locks stay with the parent."""
    for file in tuple(_open):
        file.close()
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_in_child)
