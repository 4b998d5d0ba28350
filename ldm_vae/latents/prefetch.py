"""Runs a generator in a thread, ahead of the code that uses its items."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
EntryT = TypeVar("EntryT")
POLL = 0.1  # seconds after which a waiting reader lets Ctrl-C through


class _Queue(Generic[EntryT]):
    """Hands entries from one thread to another: `depth` entries at most, and `limit` bytes or one entry at most."""

    def __init__(self, depth: int, limit: int | None) -> None:
        self.depth, self.limit = depth, limit
        self.held = 0
        self._entries: deque[tuple[EntryT, int]] = deque()
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, entry: EntryT, size: int) -> bool:
        """Waits for room; False if the reader has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(size))
            if self._stopped:
                return False
            self._entries.append((entry, size))
            self.held += size
            self._changed.notify_all()
            return True

    def get(self) -> EntryT:
        with self._changed:
            while not self._entries:
                self._changed.wait(POLL)
            entry, size = self._entries.popleft()
            self.held -= size
            self._changed.notify_all()
            return entry

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._entries.clear()
            self.held = 0
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        if not self._entries:
            return True
        return len(self._entries) < self.depth and (self.limit is None or self.held + size <= self.limit)


def in_thread(
    items: Iterable[ItemT], *, depth: int, size: Callable[[ItemT], int] | None = None, limit: int | None = None
) -> Generator[ItemT, None, None]:
    """Gives the same items, made in a thread of their own, up to `depth` items ahead.

    size: bytes of an item.   limit: bytes that the items ahead take at most; one alone may take more.
    An error in the thread is raised here, after the items before it. If the caller stops early, the thread ends after
    the item it is making.
    """
    queue: _Queue[tuple[ItemT | None, BaseException | None, bool]] = _Queue(depth, limit)

    def run() -> None:
        try:
            for item in items:
                if not queue.put((item, None, False), size(item) if size is not None else 0):
                    return
                del item  # the reader has it now, and only the reader holds it
            queue.put((None, None, True), 0)
        except BaseException as error:
            queue.put((None, error, True), 0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = queue.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # without an error there is an item
            del item
    finally:
        queue.stop()
        thread.join()
