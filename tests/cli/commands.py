"""Calls `ldm-vae` as its users do, and tells apart what it leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ldm_vae.cli.app import main


def command(*arguments: object) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def digests(folder: Path) -> dict[str, str]:
    """Path in the folder -> sha256, of all its files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
