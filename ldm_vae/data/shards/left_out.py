"""Counts what is left out of a data set, and says it once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ldm_vae.printable import LONGEST_LINE, counted, printable
from ldm_vae.ranks import rank_and_world

logger = logging.getLogger(__name__)
NUMBER = re.compile(r"\d+")


@dataclass
class Reason:
    """Why some things are left out.

    text: of the first of them.
    count: how many there are.
    example: the name of the first.
    """

    text: str
    count: int
    example: str


def group_reasons(found: Iterable[tuple[str, str]]) -> list[Reason]:
    """Counts (name, reason) by reason, in the order of their first ones. Reasons that differ in numbers are one."""
    reasons: dict[str, Reason] = {}
    for name, text in found:
        reasons.setdefault(NUMBER.sub("0", text), Reason(text, 0, name)).count += 1
    return list(reasons.values())


class Kind(NamedTuple):
    """A kind of what is left out, such as "sample" and "without a picture".

    noun: in the singular; the name of a format (".md") has no plural.
    rest: what follows it.
    """

    noun: str
    rest: str = ""

    def counted(self, count: int) -> str:
        """Such as "2 samples without a picture"."""
        number = counted(count, self.noun, plural=self.noun if self.noun.startswith(".") else "")
        return f"{number} {self.rest}".rstrip()


class LeftOut:
    """What is left out, kind by kind: how many there are of each, and the first of them."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, tuple[int, str]] = {}

    def add(self, kind: Kind, example: str, count: int = 1) -> None:
        """Counts `count` more of a kind."""
        before, first = self._kinds.get(kind, (0, example))
        self._kinds[kind] = before + count, first

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def __str__(self) -> str:
        """Such as "3 .md (notes.md), 1 .txt (a.txt)", the most frequent kind first."""
        kinds = sorted(self._kinds.items(), key=lambda kind: -kind[1][0])
        return ", ".join(f"{kind.counted(count)} ({example})" for kind, (count, example) in kinds)

    def say(self, name: str) -> None:
        """Warns of it, if there is any."""
        if self:
            warn_once(f"{name}: left out: {self}")


@lru_cache(maxsize=1024)  # a data set is loaded several times, and told once
def warn_once(message: str) -> None:
    """Warns once in a process, and on the first rank only, because all ranks read the same data."""
    if rank_and_world()[0] == 0:
        logger.warning("%s", printable(message, LONGEST_LINE))
