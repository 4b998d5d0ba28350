"""Decodes the pictures of a folder under limits of memory in steps, each in a forked child. Prints JSON.

    python under_limits.py FOLDER LIMITS STEP

Limits are 0, STEP, 2 STEP ... MiB beyond what the process takes. Of each picture, the first outcome is without a limit.
An outcome is the digest of the pixels, or the type of the error.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
from pathlib import Path

from ldm_vae.data.images import depth, tiff  # noqa: F401  (loaded before the limit)
from ldm_vae.data.images.decode import decode_image


def outcome(data: bytes, extension: str) -> str:
    try:
        return hashlib.sha256(decode_image(data, extension, 3).tobytes()).hexdigest()
    except Exception as error:
        return "MemoryError" if isinstance(error, MemoryError) else type(error).__name__


def outcome_under(limit: int, data: bytes, extension: str) -> str:
    """What a child with so many MiB more says."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + limit * 2**20,) * 2)
        os.write(writer, outcome(data, extension).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    return said if os.waitpid(pid, 0)[1] == 0 else "died"


if __name__ == "__main__":
    count, step = map(int, sys.argv[2:4])
    outcomes = {}
    for picture in sorted(Path(sys.argv[1]).iterdir()):
        content, kind = picture.read_bytes(), picture.suffix[1:]
        limited = [outcome_under(number * step, content, kind) for number in range(count)]
        outcomes[picture.name] = [outcome(content, kind), *limited]
    print(json.dumps(outcomes))
