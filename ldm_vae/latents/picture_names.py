"""Where the picture of each latent goes in a folder of decoded pictures, so that none takes the place of another.

A picture is called as its key, `KEY.png`. Where keys of two shards would give one file, the pictures of each shard
get a folder of its name, `SHARD/KEY.png`. Keys that differ in case alone, or in how Unicode composes letters, count as
equal between shards, because folders on some disks don't tell them apart. That depends on the latents alone, so a
second run writes to the same places.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath

from ldm_vae.errors import UserError
from ldm_vae.latents.dataset import LatentDataset

# Bytes of a name: 255 on nearly all disks, of which a stage (`atomic.py`) takes some before it.
LONGEST_NAME = 200


class PictureNames:
    """The name of each picture."""

    def __init__(self, latents: LatentDataset, extension: str) -> None:
        """Reads all keys. Raises UserError for one that leads out of the folder, and for two of a shard that clash."""
        self._latents, self._extension = latents, extension
        self._by_shard = self._keys_clash()

    def path(self, item: int) -> Path | None:
        """The picture of an item, relative to the folder; None where the name is too long."""
        file = self._file(self._latents.key(item))
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in file.parts):
            return None
        return Path(Path(self._latents.shard(item)).stem, file) if self._by_shard else Path(file)

    def _keys_clash(self) -> bool:
        """Whether two shards have a file in common, or a file of one is a folder of the other."""
        owner_of_file: dict[str, str] = {}
        owners_of_folder: dict[str, set[str]] = {}
        exact: dict[tuple[str, str], str] = {}  # (shard, path) -> key
        clash = False
        for item in range(len(self._latents)):
            key, shard = self._latents.key(item), self._latents.shard(item)
            file = self._file(key)
            if (first := exact.setdefault((shard, str(file)), key)) != key:
                raise UserError(f"keys {first!r} and {key!r} of {shard} would be one picture", "rename one of them")
            clash |= owner_of_file.setdefault(_folded(file), shard) != shard
            for folder in file.parents[:-1]:
                owners_of_folder.setdefault(_folded(folder), set()).add(shard)
                exact.setdefault((shard, f"{folder}/"), key)
        for (shard, path), key in exact.items():
            if (other := exact.get((shard, f"{path}/"))) is not None:
                what = f"key {key!r} of {shard} would be a picture where {other!r} has a folder"
                raise UserError(what, "rename one of them")
        return clash or any(owners_of_folder.get(path, {shard}) != {shard} for path, shard in owner_of_file.items())

    def _file(self, key: str) -> PurePosixPath:
        path = PurePosixPath(key)
        if not path.parts or ".." in path.parts or path.is_absolute():
            raise UserError(f"key {key!r} leads out of the folder", "pack the shards again with `ldm-vae shards`")
        return path.with_name(f"{path.name}.{self._extension}")


def _folded(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()
