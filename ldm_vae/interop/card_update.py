"""Writes a model card anew where there is one already, and keeps what a person wrote into it.

    ---
    library_name: diffusers       metadata for the Hub; keys that a person adds stay
    ---
    <!-- ldm-vae export ... -->
    ...                           the part that export writes
    <!-- end of ... -->
    ...                           what a person writes above or below the marks stays

The second mark holds a hash of the part between both. It tells whether a person changed that part, too.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ruamel.yaml import YAML

from ldm_vae.documents import DamagedFile, parse_yaml
from ldm_vae.errors import UserError

BEGIN = "<!-- ldm-vae export replaces the text from here to the end mark, and keeps the text above and below -->"
UNKNOWN_LICENCE = "unknown"  # the Hub's word
_END, _END_REST = "<!-- end mark of ldm-vae export, sha256 ", " -->"
_PART = re.compile(rf"{BEGIN}\n(.*?){_END}([0-9a-f]{{64}}){_END_REST}\n?", re.DOTALL)
_HEADER = re.compile(r"---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A model card in its parts.

    header: YAML, the metadata.
    above, below: what a person wrote.
    part: what export wrote, or None where there is no such part, or a person changed it.
    """

    header: str
    above: str
    part: str | None
    below: str

    @staticmethod
    def parse(text: str) -> Card:
        """The parts of a card; everything is a person's where there are no marks."""
        found = _HEADER.match(text)
        header, rest = (found[1], text[found.end() :]) if found else ("", text)
        marked = _PART.search(rest)
        if marked is None:
            return Card(header, "", None, rest.strip("\n"))
        above, below = rest[: marked.start()].strip("\n"), rest[marked.end() :].strip("\n")
        if _digest(marked[1]) == marked[2]:
            return Card(header, above, marked[1], below)
        return Card(header, above, None, "\n\n".join(filter(None, (marked[1].strip("\n"), below))))

    def text(self) -> str:
        """The whole file."""
        marked = "" if self.part is None else f"{BEGIN}\n{self.part}{_END}{_digest(self.part)}{_END_REST}\n"
        pieces = (f"{self.above}\n" if self.above else "", marked, f"{self.below}\n" if self.below else "")
        return f"---\n{self.header}---\n\n" + "\n".join(filter(None, pieces))


def update_card(old: str, new: str) -> tuple[str, bool]:
    """The card `new`, with what a person wrote into `old`.

    Returns the text, and whether it keeps a text below that an export may have written: in a card without marks (0.1.0
    wrote none), or in one whose marked part a person changed.
    Raises UserError if a header is no YAML, or if a person wrote into both.
    """
    before, now = Card.parse(old), Card.parse(new)
    theirs, ours = (before.above, before.below), (now.above, now.below)
    if any(ours) and any(theirs) and ours != theirs:
        raise UserError("a person wrote into both model cards", "copy the text of one into the other, then try again")
    above, below = ours if any(ours) else theirs
    merged = replace(now, header=_merge_headers(before.header, now.header), above=above, below=below)
    return merged.text(), before.part is None and bool(before.below)


def _merge_headers(old: str, new: str) -> str:
    """The old metadata, with the values of the new; lists are joined."""
    yaml = YAML()  # keeps comments and order
    yaml.preserve_quotes, yaml.width = True, 4096
    before, values = _mapping(old), _mapping(new)
    if not before:  # nothing but comments
        return old + new
    merged = yaml.load(old)
    if values.get("license") == UNKNOWN_LICENCE and "license" in merged:
        del values["license"]  # what is stated there stays
    elif "license" in values and _licence(before) != _licence(values):
        for key in ("license_name", "license_link"):  # of another licence
            merged.pop(key, None)
    for key, value in values.items():
        if isinstance(value, list) and isinstance(merged.get(key), str):
            merged[key] = [merged[key]]
        if isinstance(value, list) and isinstance(there := merged.get(key), list):
            there.extend(item for item in value if item not in there)
        else:
            merged[key] = value
    stream = io.StringIO()
    yaml.dump(merged, stream)
    return stream.getvalue()


def _mapping(header: str) -> dict[Any, Any]:
    """The metadata; empty where there is none. Raises UserError for what is no YAML mapping."""
    reason = "they hold no keys"
    try:
        content = parse_yaml(header, "the model card")
    except DamagedFile as error:
        content, reason = "", error.remedy
    if content is None or isinstance(content, dict):
        return content or {}
    raise UserError(f"the lines between --- and --- of the model card are no YAML mapping ({reason})", "mend them")


def _licence(header: Mapping[Any, Any]) -> tuple[str, str]:
    """What tells one licence from another: its id, and the name of one that has no id. The case of letters does not."""
    licence = str(header.get("license")).lower()
    return licence, str(header.get("license_name")).lower() if licence == "other" else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
