"""UserError, for everything that a user can mend: it names what is wrong, and the remedy, in one line."""

from __future__ import annotations

import re

LONGEST = 800  # characters of what and of the remedy: both may quote what a hostile file holds
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the name that Python gives to an object


class UserError(Exception):
    """Bad input. It is printed as one line on stderr, without a traceback; the exit code is 2.

    what: the thing that is wrong, by name.
    remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        what, remedy = (text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in (what, remedy))
        super().__init__(f"{what}: {remedy}")
        self.what = what
        self.remedy = remedy


def in_one_line(error: BaseException, longest: int = 300) -> str:
    """The type and text of an error in one line of at most `longest` characters, which is the same in every run."""
    return ADDRESS.sub("", " ".join(f"{type(error).__name__}: {error}".split()))[:longest]
