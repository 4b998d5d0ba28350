"""Text from files of others, made fit for a terminal: what commands print about data passes here.

Names in hostile shards may hold escape sequences of terminals, line breaks, bytes that are not UTF-8, and be of any
length; URLs may hold passwords.
"""

from __future__ import annotations

import io
import logging
import sys

from ldm_vae.passwords import without_secrets

LONGEST = 1000  # characters of a name or reason that are shown; --json has all
LONGEST_LINE = 10 * LONGEST  # of a whole message, which lists ten names at most


def printable(text: str, longest: int = LONGEST) -> str:
    """The text in one line without control characters and passwords, at most `longest` characters of it.

    What cannot be printed is shown as Python writes it, such as \\x1b, and \\udcff for the byte 0xff that is no UTF-8.
    """
    shown = without_secrets(text).encode("utf-8", "backslashreplace").decode()
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


def say(text: str, *, error: bool = False) -> None:
    """Prints one line, to stderr if it is about an error."""
    print(printable(text, LONGEST_LINE), file=sys.stderr if error else sys.stdout, flush=True)


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as "1 image", "2 classes", "1,200 images".

    noun: in the singular.
    plural: where it is none of noun + s, and + es after a hiss, as in class, box, batch.
    """
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {plural or noun + ('es' if noun.endswith(('s', 'x', 'z', 'ch', 'sh')) else 's')}"


class PrintableFormatter(logging.Formatter):
    """A formatter whose messages are printable. Tracebacks stay as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        record.message = printable(record.message, LONGEST_LINE)
        return super().formatMessage(record)


def prepare_output() -> None:
    """For the start of a command: no character that the terminal lacks ends it, and what libraries log is printable."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:  # prints warnings where nobody set up logging
        logging.lastResort.setFormatter(PrintableFormatter())
