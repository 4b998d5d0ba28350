"""The cache of this machine: weights of others, data sets that are made, what is remembered of files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm_vae.atomic import NO_ACCESS, NO_ROOM
from ldm_vae.errors import UserError
from ldm_vae.locks import exclusive


def cache_folder() -> Path:
    """$LDM_VAE_CACHE, or ~/.cache/ldm_vae."""
    return Path(os.environ.get("LDM_VAE_CACHE") or Path.home() / ".cache" / "ldm_vae")


@contextmanager
def cache_lock() -> Iterator[Path]:
    """Makes the cache folder, and locks it for this process alone. Raises UserError if it has no rights or no room."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with exclusive(cache / "weights.lock"):
            yield cache
    except OSError as error:
        if error.errno not in (*NO_ROOM, *NO_ACCESS, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(f"cache {cache} can't be written ({error})", "set LDM_VAE_CACHE to a folder") from error
