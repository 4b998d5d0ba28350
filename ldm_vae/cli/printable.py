"""Text from files of others, made fit for a terminal."""

from __future__ import annotations

LONGEST = 1000  # characters of a name or reason that are shown; --json has all


def printable(text: str) -> str:
    """The text without control characters, at most LONGEST of it.

    Names in hostile shards may hold escape sequences of terminals, and be of any length.
    """
    shown = text.encode("utf-8", "backslashreplace").decode()
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
