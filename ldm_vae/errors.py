"""UserError, for everything that a user can mend: it names what is wrong, and the remedy, in one line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. It is printed as one line on stderr, without a traceback; the exit code is 2.

    what: the thing that is wrong, by name.
    remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what = what
        self.remedy = remedy
