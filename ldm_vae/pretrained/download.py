"""Downloads files of weights, verifies them by sha256, and keeps them in a cache that processes share.

The cache is $LDM_VAE_CACHE, or ~/.cache/ldm_vae. If several processes need a file at once, the first takes a file lock
and downloads it, and the others wait and read its file. Nothing here runs code from a pickle.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import pickle
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

import torch
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from ldm_vae.passwords import with_secrets, without_secrets

logger = logging.getLogger(__name__)

TIMEOUT = 15  # seconds without a connection or a byte until a host counts as unreachable
HEADERS = {"User-Agent": "ldm_vae", "Accept": "text/html, */*;q=0.1"}


class Unusable(Exception):
    """A host that can't be reached, or a file that is not what it should be."""


class UnreachableHost(Unusable):
    """A host that can't be reached, or that broke off."""


class _Interrupted(UnreachableHost):
    """The connection broke off in the middle of a file: worth another try."""


class _Altered(Unusable):
    """The host answered, and what came is not the file: worth another try, because it may have been cut off."""


_try_again = retry(
    retry=retry_if_exception_type((_Interrupted, _Altered)),
    stop=stop_after_attempt(3),
    wait=wait_exponential(max=8),
    reraise=True,
)


@_try_again
def download_file(url: str, sha256: str, path: Path, *, timeout: float = TIMEOUT) -> None:
    """Downloads a file whose sha256 begins with `sha256` to `path`. Raises Unusable."""
    logger.info("downloading %s", url)
    with open_url(url, timeout=timeout) as response, path.open("wb") as file:
        while chunk := _next_chunk(response, url):
            file.write(chunk)
    try:
        verify(path, sha256)
    except Unusable as error:
        raise _Altered(f"{url}: {error}") from error


@_try_again
def download_with_torch_hub(url: str, sha256: str, path: Path) -> None:
    """Downloads a file whose sha256 begins with `sha256` to `path`, by torch's own loader, which verifies it.

    Raises UnreachableHost if the host does not answer, and Unusable if it sends another file.
    """
    logger.info("downloading %s", url)
    try:
        with _socket_timeout(TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except URLError as error:
        raise UnreachableHost(f"{url}: {error}") from error
    except (HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _Interrupted(f"{url}: {error}") from error
    except RuntimeError as error:  # the sha256 is another one
        raise _Altered(f"{url} is incomplete or altered: {error}") from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Sets the timeout of new sockets, because torch.hub waits for ever for a host that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def open_url(url: str, *, timeout: float = TIMEOUT) -> Any:
    """The response of a host. Raises UnreachableHost if there is none.

    url: without its password, if that was kept aside (`passwords.py`); it is sent along.
    """
    scheme, _, rest = with_secrets(url).partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    try:
        request = Request(f"{scheme}://{host}{slash}{path}", headers=HEADERS)
        if at:  # urllib knows no users in URLs
            token = base64.b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")  # a redirect may lead to another host
        return urlopen(request, timeout=timeout)
    except (OSError, HTTPException, ValueError) as error:
        raise UnreachableHost(without_secrets(f"{url}: {error}")) from error


def verify(path: Path, sha256: str) -> None:
    """Raises Unusable if the sha256 of a file does not begin with `sha256`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        raise Unusable(f"{path.name} is incomplete or altered: its sha256 is {digest}, not {sha256}")


def read_state(path: Path) -> dict[str, Any]:
    """A state dict of tensors that torch saved. Raises Unusable for any other file."""
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
