"""How a command ends: in one line on stderr, and an exit code that says whether its work is done.

    0   done
    1   `check` has found something, or `shards` has left out something broken
    2   not done: bad input (UserError), or an error of the system (`system.py`); the line says which, and the remedy

Functions of the library raise OSError and MemoryError as they come. The outermost layer of a command puts them into
words, for it alone knows that nothing is left to do but to end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_vae.errors import UserError
from ldm_vae.printable import say
from ldm_vae.system import describe_fault, reading

NOT_DONE = 2  # exit code


@contextmanager
def told_in_a_line(program: str, tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Around a whole command: errors of the user and of the machine end the process, in one line. Others pass.

    What is still to be printed is flushed first, and counts as work: output that is lost is no success.

    program: precedes the line.
    tell: prints the message; None prints it to stderr.
    """
    try:
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
    if tell is None:
        say(f"{program}: {message}", error=True)
    else:
        tell(message)
    _give_up_stdout()
    sys.exit(NOT_DONE)


def _flush() -> None:
    with reading(Path("the output")):
        sys.stdout.flush()


def _give_up_stdout() -> None:
    """What cannot be printed now can't be when Python ends, either, which would say so once more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
