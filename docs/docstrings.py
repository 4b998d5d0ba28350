"""Docstrings as they are written here -> the reStructuredText that autodoc wants.

Ours are plain text for people: paragraphs, `code` in single backticks, tables by indentation, and arguments as
`name: what it is.`, which begin a line each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

NAMES = r"[a-z_]\w*(?:, [a-z_]\w*)*"  # image   or   height, width
ARGUMENT = re.compile(rf"({NAMES}): (.+)", re.DOTALL)
START = re.compile(rf"{NAMES}: |Returns? |Raises |Sources?: |Check: |- ")  # a line that begins a new item
TABLE = re.compile(r"[\w./]+ {2,}\S")  # a line of columns, even where the first is not indented


def to_rest(lines: Iterable[str]) -> list[str]:
    """Lines of a docstring without its common indentation -> lines of reStructuredText."""
    result: list[str] = []
    for empty, group in groupby(lines, key=lambda line: not line.strip()):
        if not empty:
            block = list(group)
            # An indented part of a block is as it was drawn; what stands before and after it are paragraphs.
            for drawn, part in groupby(block, key=lambda line: line.startswith(" ") or is_table(block)):
                show = as_drawn if drawn else as_text
                result += show(part)
    return result


def is_table(block: list[str]) -> bool:
    return TABLE.match(block[0]) is not None and len(block) > 1


def as_drawn(lines: Iterable[str]) -> Iterator[str]:
    yield from ("::", "", *(f"    {line}" for line in lines), "")


def as_text(lines: Iterable[str]) -> Iterator[str]:
    """Arguments as a list, everything else as paragraphs."""
    items: list[str] = []
    for line in lines:
        if not items or START.match(line):
            items.append(line.strip())
        else:
            items[-1] += f" {line.strip()}"
    for item in items:
        if (argument := ARGUMENT.fullmatch(item)) is not None:
            yield f"* **{escaped(argument[1])}**: {marked(argument[2])}"
        elif item.startswith("- "):
            yield f"* {marked(item[2:])}"
        else:
            yield from ("", marked(item), "")
    yield ""


def marked(text: str) -> str:
    """`code` in double backticks; nothing else is markup."""
    pieces = re.split(r"`([^`]+)`", text)
    return "".join(rf"\ ``{piece}``\ " if place % 2 else escaped(piece) for place, piece in enumerate(pieces))


def escaped(text: str) -> str:
    return re.sub(r"([\\*`|_])", r"\\\1", text)
