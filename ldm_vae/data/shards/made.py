"""Data sets that the package makes: `made:NAME/PART`, written into the cache as shards when first asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ldm_vae.atomic import atomic_folder
from ldm_vae.cache import cache_folder, cache_lock
from ldm_vae.errors import UserError
from ldm_vae.parts import MADE

SCHEME = "made:"


def is_made(spec: str) -> bool:
    """Whether a place of shards is a data set that the package makes."""
    return spec.startswith(SCHEME)


def made_folder(spec: str) -> Path:
    """The folder of `made:NAME/PART`, whose shards are made now if nobody has made them yet: the same bytes each time.

    Raises UserError for a name or part that is not known, and where the cache can't be written.
    """
    name, _, part = spec.removeprefix(SCHEME).partition("/")
    parts = [f"{SCHEME}{known}/{part}" for known, module in MADE.items() for part in import_module(module).PARTS]
    if spec not in parts:
        raise UserError(f"the data set {spec}", f"known are {', '.join(parts)}")
    made: Any = import_module(MADE[name])
    place = Path("made", f"{name}-{made.VERSION}", part)
    if not (folder := cache_folder() / place).is_dir():
        with cache_lock() as cache:
            if not (folder := cache / place).is_dir():  # nobody made it while this process waited
                folder.parent.mkdir(parents=True, exist_ok=True)
                with atomic_folder(folder) as stage:
                    _write(stage / "000000.tar", made.samples(part))
    return folder


def _write(path: Path, samples: Any) -> None:
    """samples: pairs of key and fields, name -> bytes."""
    from webdataset import TarWriter  # which commands should not wait for

    with (
        path.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT") as tar,
    ):
        for key, fields in samples:
            tar.write({"__key__": key, **fields})
