"""Tells a fault of the data from one of the machine, and tries again what may succeed next time.

Only that a file is not there, or ends too early, says something about the data: `Missing`. A disk or file server that
fails, too many open files, too little memory, a dropped connection say nothing about it. They are tried again, with
pauses that grow. If they stay, the run stops with `Unreachable`, and nothing is recorded against any sample.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import ClassVar, TypeVar

import tenacity

from ldm_vae.errors import UserError

logger = logging.getLogger(__name__)
TRIES = 20  # in a row that bring nothing until a disk or server counts as unreachable: some three minutes
FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0  # seconds between tries: a random part of a bound that doubles up to the longest
NOTICE_AFTER = 5.0  # seconds without an answer until a person is told what is being waited for

ResultT = TypeVar("ResultT")


class Missing(Exception):
    """The bytes are not there: no such file, or it ends too early. Trying again does not help."""


class Unreachable(UserError):
    """A disk or server that gave nothing in `TRIES` tries. It says nothing about the data, so the run stops."""


class Forbidden(UserError):
    """A file that may not be read. It says nothing about the data, so the run stops."""


class Transient(Exception):
    """A try that failed, and may succeed when it is made again."""


def retried(place: str, remedy: str, request: Callable[[], ResultT], *, watched: bool) -> ResultT:
    """What `request` gives. It is made again while it raises Transient.

    place: what is waited for, as a person may read it. Of one place a person is told once, until it answers at once.
    remedy: what to do if it stays away.
    watched: whether the first try may take long, too. Otherwise a person is told after it has failed.
    Raises Unreachable after `TRIES` tries.
    """
    if not watched:
        try:
            return request()
        except Transient:
            pass  # nothing of what follows is set up for the many calls that succeed
    reason = ["no answer yet"]

    def before(state: tenacity.RetryCallState) -> None:
        reason[0] = str(state.outcome.exception()) if state.outcome else reason[0]

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES if watched else TRIES - 1),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        retry=tenacity.retry_if_exception_type(Transient),
        before_sleep=before,
        reraise=True,
    )
    with _Notice(place, reason):
        try:
            return retrying(request)
        except Transient as error:
            raise Unreachable(f"{place} cannot be read ({error})", remedy) from error


class _Notice:
    """Tells a person, once for an outage, what is waited for: from a thread, because a request may hang."""

    told: ClassVar[set[str]] = set()  # places whose outage is known

    def __init__(self, place: str, reason: list[str]) -> None:
        self.place, self.reason = place, reason
        self.late = threading.Event()
        self.timer = threading.Timer(NOTICE_AFTER, self._tell)
        self.timer.daemon = True

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        if not self.late.is_set():
            self.told.discard(self.place)

    def _tell(self) -> None:
        self.late.set()
        if self.place not in self.told:
            self.told.add(self.place)
            logger.warning("waiting for %s (%s)", self.place, self.reason[0])
