"""The one kind of error that a user can mend: it names the thing and the remedy in a line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. Printed as one line on stderr with exit code 2, without a traceback.

    what: the thing that is wrong, by name.    remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what = what
        self.remedy = remedy
