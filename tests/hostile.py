"""Changes a valid file into hostile ones: values of other types and sizes, cut, flipped and foreign bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

DEEP: Any = json.loads("[" * 200 + "]" * 200)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**9, 2**63 - 1, 10**400, 1.5, 1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *("", "x" * 70_000, "\ud800", "../../etc/passwd", "a\0b", [], {}, [[]], {"": {"": None}}, ["x"] * 20_000, DEEP),
)
FOREIGN = (
    *(b"", b"\n", b"null", b"[]", b"7", b'"text"', b"{", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\0" * 4096),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1, "a": 2}', b'{"\\ud800": 1}', b'{"a": 1e999}', b"9" * 5000),
)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree; of a long list the first values stand for all."""
    yield path
    parts = dict(enumerate(content[:3])) if isinstance(content, list) else content
    for key, value in parts.items() if isinstance(parts, dict) else ():
        yield from places(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = replaced(content[path[0]], path[1:], value)
    return copy


def without(content: Any, path: tuple[Any, ...]) -> Any:
    """A copy without the value at a path."""
    copy = dict(content) if isinstance(content, dict) else list(content)
    if len(path) > 1:
        copy[path[0]] = without(content[path[0]], path[1:])
    else:
        del copy[path[0]]
    return copy


def trees(content: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """`count` copies with one value that is left out, or replaced by each of VALUES in turn."""
    draw = random.Random(seed)
    known = list(places(content))
    for number in range(count):
        path = draw.choice(known)
        if path and number % 5 == 0:
            yield without(content, path)
        else:
            yield replaced(content, path, VALUES[number % len(VALUES)])


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Cut at `count` places, and with 1 to 3 bytes flipped, `count` times."""
    draw = random.Random(seed)
    for end in range(0, len(data), max(1, len(data) // count)):
        yield data[:end]
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        yield bytes(changed)


def hostile_json(data: bytes, count: int) -> Iterator[bytes]:
    """All of it for a JSON file."""
    yield from FOREIGN
    for tree in trees(json.loads(data), count):
        yield json.dumps(tree).encode()
    yield from damaged(data, count // 2)
