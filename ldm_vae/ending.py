"""How a command ends: in one line on stderr, and an exit code that says whether its work is done.

    0   done
    1   `check` has found something, or `shards` has left out something broken
    2   not done: bad input (UserError), or an error of the system (`system.py`); the line says which, and the remedy
    141 no one reads the output any more, as after `| head`: without a line, as Unix tools end by the signal SIGPIPE

Functions of the library raise OSError and MemoryError as they come. The outermost layer of a command puts them into
words, for it alone knows that nothing is left to do but to end.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ldm_vae.errors import UserError
from ldm_vae.printable import say
from ldm_vae.system import describe_fault, reading

NOT_DONE, UNREAD = 2, 128 + signal.SIGPIPE  # exit codes


@contextmanager
def told_in_a_line(program: str, tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Around a whole command: errors of the user and of the machine end the process, in one line. Others pass.

    What is still to be printed is flushed first, and counts as work: output that is lost is no success.

    program: precedes the line.
    tell: prints the message; None prints it to stderr.
    """
    try:
        with _silent_where_unread():
            try:
                yield
            except SystemExit as stop:
                if not stop.code:
                    _flush()
                raise
            _flush()
    except UserError as error:
        message = str(error)
    except Exception as error:
        told = describe_fault(error)
        if told is None:
            raise
        message = told
    else:
        return
    with suppress(BrokenPipeError):  # where stderr is unread, too, the exit code still tells it
        if tell is None:
            say(f"{program}: {message}", error=True)
        else:
            tell(message)
    for stream in _outputs():
        _give_up(stream)
    sys.exit(NOT_DONE)


@contextmanager
def _silent_where_unread() -> Iterator[None]:
    """Ends the process without a word where a pipe behind its output has no reader any more.

    Then typer and rich end it with exit code 1, and rich leads stdout elsewhere before. typer does so for the broken
    pipes of all other things, too: such an error passes from here.
    """
    streams = {stream: _target(stream) for stream in _outputs()}
    try:
        yield
    except (BrokenPipeError, SystemExit) as stop:
        error = stop if isinstance(stop, BrokenPipeError) else stop.__context__
        if not isinstance(error, BrokenPipeError):
            raise
        unread = [stream for stream, target in streams.items() if _target(stream) != target or _is_unread(stream)]
        if not unread:
            raise error from None
        for stream in unread:
            _lead_nowhere(stream)
        sys.exit(UNREAD)


def _outputs() -> list[TextIO]:
    """stdout and stderr. One that was closed before Python began is None there."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _target(stream: TextIO) -> tuple[int, int] | None:
    """What a stream leads to, such as a pipe: its device and number; None where the system does not know the stream."""
    with suppress(OSError, ValueError):
        found = os.fstat(stream.fileno())
        return found.st_dev, found.st_ino
    return None


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream leads to a pipe or a socket whose other end is closed."""
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # errors are told without being asked for
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    return False


def _flush() -> None:
    with reading(Path("the output")):
        if sys.stdout in _outputs():
            sys.stdout.flush()


def _give_up(stream: TextIO) -> None:
    """What cannot be printed now can't be when Python ends, either, which would say so once more."""
    try:
        stream.flush()
    except (OSError, ValueError):
        _lead_nowhere(stream)


def _lead_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
