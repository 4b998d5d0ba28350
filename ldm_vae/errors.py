"""UserError, for everything that a user can mend: it names what is wrong, and the remedy, in one line."""

from __future__ import annotations

import re

from ldm_vae.passwords import without_secrets

LONGEST = 4000  # characters of what and of the remedy: room for ten long paths; both may quote a hostile file
# In the names that Python and C give to objects. Numbers that a file holds have fewer digits.
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+|\b0x[0-9a-fA-F]{9,16}\b")


class UserError(Exception):
    """Bad input. It is printed as one line on stderr, without a traceback; the exit code is 2.

    what: the thing that is wrong, by name.
    remedy: what to do about it.
    Both lose the passwords and signatures in their URLs.
    """

    def __init__(self, what: str, remedy: str) -> None:
        what, remedy = (_shortened(without_secrets(text)) for text in (what, remedy))
        super().__init__(f"{what}: {remedy}")
        self.what = what
        self.remedy = remedy


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def in_one_line(error: BaseException, longest: int = 300) -> str:
    """The type and text of an error in one line of at most `longest` characters, which is the same in every run.

    Without addresses in memory, and without the passwords and signatures of URLs.
    """
    text = without_secrets(f"{type(error).__name__}: {error}")
    return ADDRESS.sub("", " ".join(text.split()))[:longest]
