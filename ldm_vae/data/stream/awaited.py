"""An item that takes its time, waited for with a limit: whoever waits can look at other things in between."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakSet

ItemT = TypeVar("ItemT")
GRACE = 5.0  # seconds that the end of the process waits for threads at work
_threads: WeakSet[threading.Thread] = WeakSet()


class Awaited(Generic[ItemT]):
    """Makes one item after the other: in the thread that takes it, or in one of its own while another waits for it."""

    def __init__(self, make: Callable[[], ItemT]) -> None:
        """make: makes the next item. It is called once for each, never by two threads at a time."""
        self._make = make
        self._thread: threading.Thread | None = None
        self._item: list[ItemT] = []
        self._error: list[BaseException] = []

    def arrived(self, seconds: float) -> bool:
        """Begins with the next item where nobody has, and waits so long at most. True once `take` would not wait."""
        if self._thread is None:
            # A daemon: the process may end while it waits for a server that never answers.
            self._thread = threading.Thread(target=self._run, daemon=True)
            _threads.add(self._thread)
            self._thread.start()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def take(self) -> ItemT:
        """The next item, however long it takes. Raises what making it has raised."""
        if self._thread is None:
            return self._make()
        self._thread.join()
        self._thread = None
        if self._error:
            raise self._error.pop()
        return self._item.pop()

    def _run(self) -> None:
        try:
            self._item.append(self._make())
        except BaseException as error:  # whoever takes the item gets it
            self._error.append(error)


@atexit.register
def _let_threads_finish() -> None:
    """Before Python ends: it stops a thread where that next asks for Python's lock. Inside of PyTorch's C++, as when a
    tensor is freed, that aborts the process. A thread that waits for a server is in no such place.
    """
    end = time.monotonic() + GRACE
    for thread in list(_threads):
        thread.join(max(0.0, end - time.monotonic()))
