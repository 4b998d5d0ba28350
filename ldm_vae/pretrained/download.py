"""Files of weights from the internet: streamed, verified by sha256, and kept in a cache that processes share.

The cache is $LDM_VAE_CACHE, or ~/.cache/ldm_vae. Processes may all ask for a file at once: the first takes a file lock
and fetches, the others wait for it and read its file. Nothing here runs code from a pickle.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from ldm_vae.errors import UserError

logger = logging.getLogger(__name__)

TIMEOUT = 15  # seconds to connect, and without a byte, before a host counts as unreachable


class Unusable(Exception):
    """A source that can't be reached, or a file that is not what it should be."""


class _Interrupted(Unusable):
    """The host answered, and what came is not the file: worth another try."""


def cache_folder() -> Path:
    """$LDM_VAE_CACHE, or ~/.cache/ldm_vae."""
    return Path(os.environ.get("LDM_VAE_CACHE") or Path.home() / ".cache" / "ldm_vae")


@contextmanager
def cache_lock() -> Iterator[Path]:
    """The cache folder, made if need be, for this process alone. Raises UserError where it can't be written."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "weights.lock"):
            yield cache
    except OSError as error:
        raise UserError(f"cache {cache} can't be written ({error})", "set LDM_VAE_CACHE to a folder") from error


@retry(
    retry=retry_if_exception_type(_Interrupted),
    stop=stop_after_attempt(3),
    wait=wait_exponential(max=8),
    reraise=True,
)
def download_file(url: str, sha256: str, path: Path, *, timeout: float = TIMEOUT) -> None:
    """Stream a file whose sha256 begins as given to `path`. Raises Unusable."""
    logger.info("downloading %s", url)
    with open_url(url, timeout=timeout) as response, path.open("wb") as file:
        while chunk := _next_chunk(response, url):
            file.write(chunk)
    try:
        verify(path, sha256)
    except Unusable as error:
        raise _Interrupted(f"{url}: {error}") from error


def open_url(url: str, *, timeout: float = TIMEOUT) -> Any:
    """The response of a host. Raises Unusable where there is none."""
    request = Request(url, headers={"User-Agent": "ldm_vae", "Accept": "text/html, */*;q=0.1"})
    try:
        return urlopen(request, timeout=timeout)
    except (OSError, HTTPException, ValueError) as error:
        raise Unusable(f"{url}: {error}") from error


def verify(path: Path, sha256: str) -> None:
    """Raises Unusable for a file whose sha256 does not begin as given."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise Unusable(f"{path.name} is incomplete or altered: its sha256 is {found}, not {sha256}")


def read_state(path: Path) -> dict[str, Any]:
    """A state dict that torch saved, tensors alone. Raises Unusable for any other file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise Unusable(f"no state dict of tensors alone ({str(error).partition(chr(10))[0]})") from error
    if not isinstance(state, dict):
        raise Unusable("no state dict")
    return state


def _next_chunk(response: Any, url: str) -> bytes:
    try:
        return bytes(response.read(2**20))
    except (OSError, HTTPException) as error:
        raise _Interrupted(f"{url}: {error}") from error
