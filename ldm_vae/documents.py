"""Reads JSON and YAML: the one place where the text of a file, which anybody may have written, becomes values.

The size of a file, the depth of its values and what YAML's aliases grow to are bounded before memory is taken. Text is
UTF-8 (a byte order mark is passed over), no key comes twice, and integers have at most 64 bits. What breaks a rule
raises `DamagedFile`, one line that names the file. What the values mean is checked by a typed class: `recipe.validate`.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from ldm_vae.errors import UserError, in_one_line
from ldm_vae.system import reading

SMALL = 2**24  # bytes of a file about one model or run, which has a few kB
LARGE = 2**31  # bytes of a file with an entry for each sample: about 100 bytes each, so some 20 million samples
PART = 2**20  # bytes of one read
YAML_BYTES = 2**20  # a recipe has a few kB, and pure Python reads about 100 kB a second
YAML_VALUES = 2**16  # values of a YAML file after its aliases are written out
MAX_DEPTH = 64  # of values in values; what this project writes has at most 10
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_NO_ESCAPED_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the rest is how Python reads a name that is no UTF-8


class DamagedFile(UserError):
    """A file that is there, and holds something else than it should."""


def read_json(path: Path, remedy: str, *, largest: int = SMALL, names: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    remedy: what to do where it is damaged.
    largest: bytes that it may have.
    names: as in `parse_json`.
    Raises FileNotFoundError without the file, DamagedFile for one that holds anything else than an object, and another
    OSError where it cannot be read just now.
    """
    return parse_object(read_file(path, remedy, largest=largest), str(path), remedy, names=names)


def read_file(path: Path, remedy: str, *, largest: int = SMALL) -> bytes:
    """The bytes of a file; the arguments and errors are those of `read_json`."""
    try:
        with reading(path):
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block
                raise DamagedFile(f"{path} is a folder or a device, and a file is to have that name", remedy)
            with path.open("rb") as file:
                parts, left = [], largest + 1
                while left and (part := file.read(min(left, PART))):  # it reserves as much memory as it may give
                    parts.append(part)
                    left -= len(part)
                data = b"".join(parts)
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    if len(data) > largest:
        raise DamagedFile(f"{path} is damaged (more than {largest:,} bytes)", remedy)
    return data


def read_text(path: Path, remedy: str) -> str:
    """The text of a small file; the arguments and errors are those of `read_json`."""
    return _decoded(read_file(path, remedy), str(path), remedy)


def parse_object(data: bytes, name: str, remedy: str, *, names: bool = False) -> dict[str, Any]:
    """Like `parse_json`, for an object."""
    content = parse_json(data, name, remedy, names=names)
    if not isinstance(content, dict):
        raise DamagedFile(f"{name} is damaged (it holds no object)", remedy)
    return content


def parse_json(data: bytes, name: str, remedy: str, *, names: bool = False) -> Any:
    """The value in JSON text. NaN and infinity pass, as Python writes them.

    name: of the file, for errors.
    remedy: what to do where it is damaged.
    names: whether strings may hold names of files that are not UTF-8, with Python's escapes for their bytes.
    Raises DamagedFile.
    """
    text = _decoded(data, name, remedy)
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates, parse_int=_integer)
        _check_depth(content)
    except RecursionError:
        raise DamagedFile(f"{name} is damaged (its values are nested too deeply)", remedy) from None
    except ValueError as error:
        reason = "it is empty" if not text.strip() else in_one_line(error, longest=200).partition(": ")[2]
        raise DamagedFile(f"{name} is damaged ({reason})", remedy) from None
    if "\\ud" in text.lower():
        broken = _NO_ESCAPED_BYTE if names else _HALF_CHARACTER
        if any(broken.search(string) for string in _strings(content)):
            raise DamagedFile(f"{name} is damaged (half of a character in a text)", remedy)
    return content


def parse_lines(data: bytes) -> Iterator[dict[str, Any] | None]:
    """The object in each line of JSON lines, in order; None for a line that holds none, such as half a line."""
    for line in data.splitlines():
        try:
            yield parse_object(line, "", "")
        except DamagedFile:
            yield None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML 1.2 file that holds a mapping. Raises UserError if it is missing or malformed."""
    remedy = "give a text file in YAML, such as configs/demo_cpu.yaml"
    try:
        data = read_file(path, remedy, largest=YAML_BYTES)
    except FileNotFoundError:
        what = f"recipe {path} not found"
        raise UserError(what, "give the path of a YAML file, such as configs/demo_cpu.yaml") from None
    content = parse_yaml(_decoded(data, str(path), remedy), str(path))
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} holds no mapping", "write `key: value` lines")
    return content


def parse_yaml(text: str, name: str) -> Any:
    """The value in a YAML 1.2 text. Raises DamagedFile where it is malformed, and where aliases make it grow."""
    try:
        _check_growth(text)
        content = YAML(typ="safe", pure=True).load(text)
        if any(_HALF_CHARACTER.search(string) for string in _strings(content)):
            raise ValueError("half of a character in a text")
        return content
    except MemoryError:
        raise
    except Exception as error:  # beside YAMLError what int(), dates and unhashable keys raise
        reason = " ".join(str(error).split()) if isinstance(error, YAMLError) else in_one_line(error, longest=200)
        raise DamagedFile(f"{name} is not valid YAML", reason) from error


def _decoded(data: bytes, name: str, remedy: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{name} is damaged (byte {error.start} is no UTF-8)", remedy) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} comes twice")
    return content


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"the integer {text[:24]}... has more than 64 bits")
    return value


def _check_depth(content: Any) -> None:
    level, depth = [content], 0
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        level = [value for part in level for value in (part.values() if isinstance(part, dict) else part)]


def _strings(content: Any) -> Iterator[str]:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def _check_growth(text: str) -> None:
    """Counts the values of a YAML text with all aliases written out, before any is built."""
    sizes: dict[str, int] = {}  # anchor -> values below it
    open_parts: list[tuple[str | None, int]] = []  # anchor of each collection around the event, and the count before it
    count = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            open_parts.append((event.anchor, count))
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_parts.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_parts):
                raise ValueError(f"the alias *{event.anchor} lies within what it stands for")
            count += sizes.get(event.anchor, 0)
        elif isinstance(event, ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        count += isinstance(event, ScalarEvent | CollectionStartEvent)
        if count > YAML_VALUES or len(open_parts) > MAX_DEPTH:
            raise ValueError(f"more than {YAML_VALUES:,} values with its aliases, or nested deeper than {MAX_DEPTH}")
