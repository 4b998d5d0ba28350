"""What the path or URL of a shard says: where it lies, what it is called, what is beside it.

A URL may end in a query, such as the signature that lets one read it. The query is no part of any name, and goes along
to what lies in the same folder.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".tar.z", ".zip")


def is_remote(url: str) -> bool:
    return "://" in url


def is_tar(url: str) -> bool:
    """Whether a path or URL is that of a tar, by the end of its path."""
    return _cut(url)[0].endswith(".tar")


def is_signed(url: str) -> bool:
    """Whether a URL has a query."""
    return bool(_cut(url)[1])


def name_of(url: str) -> str:
    """The last name in a path or URL."""
    return _cut(url)[0].rpartition("/")[2]


def folder_of(url: str) -> str:
    """The URL of the folder that a URL lies in, with its query."""
    path, query = _cut(url)
    return path.rpartition("/")[0] + query


def within(folder: str, name: str) -> str:
    """The path or URL of what is called `name` in a folder."""
    path, query = _cut(folder)
    return f"{path.rstrip('/') if is_remote(folder) else path}/{name}{query}"


def is_compressed(name: str) -> bool:
    """Whether a file of this name is a compressed archive, which cannot be read at an offset."""
    return name.lower().endswith(COMPRESSED)


def host_of(url: str) -> str:
    """Scheme and host of a URL, for messages: without user, password, path and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def without_secrets(spec: str) -> str:
    """The URLs of `spec` without user, password and query, which may hold a signature: fit to be stored and shown."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", re.sub(r"(://[^\s?]*)\?\S*", r"\1", spec))


def _cut(url: str) -> tuple[str, str]:
    """(URL up to the query, the query with its ?). A path has none: ? is a letter there."""
    path, mark, query = url.partition("?") if is_remote(url) else (url, "", "")
    return path, mark + query
