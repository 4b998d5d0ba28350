"""A terminal for tests: stderr leads to it, and what is drawn on it can be read."""

from __future__ import annotations

import os
import pty
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 100) -> Iterator[Callable[[], str]]:
    """stderr is a terminal; the function gives what has been drawn on it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    os.set_blocking(master, False)
    text = b""

    def drawn() -> str:
        nonlocal text
        with suppress(BlockingIOError):
            while True:
                text += os.read(master, 2**16)
        return text.decode()

    with monkeypatch.context() as patch, os.fdopen(slave, "w", buffering=1) as stderr:
        patch.setattr(sys, "stderr", stderr)
        yield drawn
    os.close(master)
