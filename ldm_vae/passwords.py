"""Passwords and signatures in URLs: kept aside where a person gives them, sent in requests, and never stored or shown.

`https://user:password@host/photographs/000000.tar?signature=...` becomes `https://host/photographs/000000.tar`: so it
is called in recipes, records, results, pages and messages. This process remembers the rest, and adds it to requests for
that file or folder. A stored URL that needs a password is therefore given anew by the person who reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

NEVER_STORED = "if it needs a password or signature, give the URL with it: none is ever stored"

_USER = re.compile(r"(?<=://)[^/\s]*@")  # up to the last @, because passwords may hold one
# What follows ? is a pattern of files (s3://bucket/a?.tar) unless it names a value, except where it is always a query.
_QUERY = re.compile(r"(https?://[^\s?]*|://[^\s?]*(?=\?\S*=))\?\S*")
_PATTERN = re.compile(r"[{*]")  # where a pattern of URLs begins to differ from its URLs


@dataclass(frozen=True)
class _Secret:
    """What belongs to the URLs that begin with a prefix.

    user: "user:password@", or empty.
    query: "?signature=...", or empty.
    """

    user: str
    query: str


_kept: dict[str, _Secret] = {}  # prefix of URLs -> what belongs to them; a later one replaces an earlier one


def without_secrets(text: str) -> str:
    """The text without user, password and query in its URLs: fit to be stored and shown."""
    return _QUERY.sub(r"\1", _USER.sub("", text)) if "://" in text else text


def values_without_secrets(values: Any) -> Any:
    """The same for all strings in what JSON holds."""
    if isinstance(values, dict):
        return {name: values_without_secrets(value) for name, value in values.items()}
    if isinstance(values, list):
        return [values_without_secrets(value) for value in values]
    return without_secrets(values) if isinstance(values, str) else values


def keep_aside(spec: str) -> str:
    """`spec` without secrets, which this process keeps for its requests. A spec that has none stays as it is.

    spec: path, URL of a file or folder, or pattern of URLs.
    """
    plain = without_secrets(spec)
    if plain == spec:
        return spec
    user = _USER.search(spec)
    cut = _QUERY.search(spec)
    secret = _Secret("" if user is None else user[0], "" if cut is None else cut[0][len(cut[1]) :])
    scheme, _, rest = plain.partition("://")
    literal = _PATTERN.split(plain)[0]
    # A signature for a folder signs the files in it, and a password counts for the whole host.
    folder = literal.rpartition("/")[0] if literal != plain or plain.endswith(".tar") else plain.rstrip("/")
    _kept[plain] = secret
    if folder.startswith(f"{scheme}://"):  # else the host is a part of the pattern
        _kept[f"{scheme}://{rest.partition('/')[0]}/"] = _Secret(secret.user, "")
        _kept[f"{folder}/"] = secret  # last, since the folder may be the host's first
    return plain


def with_secrets(url: str) -> str:
    """The URL to send a request to: with the user, password and query that were kept aside for it."""
    if not _kept or "://" not in url:
        return url
    found = [_kept[prefix] for prefix in sorted(_kept, key=len, reverse=True) if url.startswith(prefix)]
    user = next((secret.user for secret in found if secret.user), "")
    query = next((secret.query for secret in found if secret.query), "")
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{'' if '@' in rest.partition('/')[0] else user}{rest}{'' if '?' in rest else query}"


def kept_aside() -> dict[str, _Secret]:
    """What this process keeps, for processes that it starts (`keep_these`)."""
    return dict(_kept)


def keep_these(kept: dict[str, _Secret]) -> None:
    """Keeps what another process gave."""
    _kept.update(kept)
