"""Runs a generator in a thread, ahead of the code that uses its items."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from typing import TypeVar

ItemT = TypeVar("ItemT")
POLL = 0.1  # seconds between checks whether the reader of a full queue has stopped


def in_thread(items: Iterable[ItemT], *, depth: int) -> Generator[ItemT, None, None]:
    """Gives the same items, made in a thread of their own, up to `depth` items ahead.

    An error in the thread is raised here, after the items before it. If the caller stops early, the thread ends after
    the item it is making.
    """
    queue: Queue[tuple[ItemT | None, BaseException | None, bool]] = Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[ItemT | None, BaseException | None, bool]) -> bool:
        while not stopped.is_set():
            try:
                queue.put(entry, timeout=POLL)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item, None, False)):
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error, last = queue.get(timeout=POLL)
            except Empty:
                continue  # lets Ctrl-C through
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # without an error there is an item
    finally:
        stopped.set()
        thread.join()
