"""The digest of what a shard of images holds, by which a folder of latents tells what it was made from.

The digest covers the keys, fields and contents of the samples in their order. It covers neither the padding of a tar
nor the times in it, so a tar that was packed again from the same files has the same digest.

To compute it, the whole shard is read. A private cache remembers the digest for each version of a file: size and times
of a local one, the server's tag of a remote one. Nothing of the cache gets into a folder of latents.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from ldm_vae.atomic import atomic_file
from ldm_vae.cache import cache_folder
from ldm_vae.data.shards.disk import read_file
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.samples import read_samples
from ldm_vae.data.shards.shard import Fields, ShardIndex
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.data.shards.urls import is_remote, within
from ldm_vae.documents import DamagedFile, parse_object
from ldm_vae.errors import UserError
from ldm_vae.passwords import without_secrets

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ContentDigest:
    """The sha256 of samples that come one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, key: str, fields: Fields | str) -> None:
        """Adds a sample.

        fields: name -> content; or why it cannot be read.
        """
        self._add(key.encode("utf-8", "surrogateescape"))
        if isinstance(fields, str):
            self._add(b"broken")
            return
        for name in sorted(fields):
            self._add(name.encode("utf-8", "surrogateescape"))
            self._add(fields[name])

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _add(self, data: bytes) -> None:
        self._digest.update(len(data).to_bytes(8, "big"))  # else "a", "bc" would be "ab", "c"
        self._digest.update(data)


def version_of(shard: ShardIndex) -> str | None:
    """Changes whenever the files of the shard do, or its index; None where a server does not tell.

    Raises UserError if the shard is not there.
    """
    urls = [shard.url] if shard.files is None else [within(shard.url, name) for name in shard.files]
    try:
        with closing(RangeReader()) as reader:
            versions = [reader.version(url) for url in urls]
    except Missing as error:
        what = f"shard {without_secrets(shard.url)} cannot be read ({error})"
        raise UserError(what, "mend it, then run this again: what is finished is kept") from error
    if None in versions:
        return None
    places = {field: hashlib.sha256(table.tobytes()).hexdigest() for field, table in sorted(shard.members.items())}
    chosen = [hashlib.sha256(shard.names).hexdigest(), shard.ends.tolist(), places, shard.files]
    return hashlib.sha256(json.dumps([versions, chosen]).encode()).hexdigest()


def source_digest(shard: ShardIndex, *, remembered: bool = True) -> str:
    """The digest of a shard.

    remembered: the cache is asked first. Without it, the shard is read.
    Raises UserError if the shard cannot be read.
    """
    version = version_of(shard)
    if remembered and version is not None:
        with suppress(Missing, DamagedFile):
            known = parse_object(read_file(_cached(shard)), "", "").get(version)
            if isinstance(known, str) and _DIGEST.fullmatch(known):
                return known
    reader = DigestingReader()
    for _ in reader.read(0, shard):
        pass
    return reader.digests[0]


class DigestingReader:
    """Reads shards one after the other.

    digests: number of each shard that was read to its end -> its digest. The cache has it then, too.
    """

    def __init__(self) -> None:
        self.digests: dict[int, str] = {}

    def read(self, number: int, shard: ShardIndex) -> Iterator[tuple[str, Fields | str]]:
        """Gives (key, fields) for each sample, or (key, reason), as `read_samples` does."""
        version, digest = version_of(shard), ContentDigest()
        for key, fields in read_samples(shard):
            digest.update(key, fields)
            yield key, fields
        self.digests[number] = digest.hexdigest()
        _remember(shard, version, digest.hexdigest())


def _remember(shard: ShardIndex, version: str | None, digest: str) -> None:
    """Stores the digest of a shard for the version that it had before it was read, unless it has changed since."""
    if version is None or version_of(shard) != version:
        return
    with suppress(OSError, UserError), atomic_file(_cached(shard)) as stage:  # without a cache it is only slower
        stage.write_text(json.dumps({version: digest}))


def _cached(shard: ShardIndex) -> Path:
    url = without_secrets(shard.url) if is_remote(shard.url) else str(Path(shard.url).resolve())
    name = f"{url} {shard.files[0] if shard.files else ''}"
    return cache_folder() / "sources" / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()}.json"
