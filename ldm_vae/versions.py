"""Versions of this package and of what it runs on, from what the installer wrote: nothing is imported."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from ldm_vae.extras import DISTRIBUTIONS, PACKAGES, install_command

BASE = (
    "torch",
    "torchvision",
    "diffusers",
    "accelerate",
    "lpips",
    "webdataset",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
)


def version_of(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions_in_words() -> Iterator[str]:
    """A line for this package, for Python, and for each package that matters, or the command that installs it."""
    yield f"ldm-vae {version_of('ldm-vae') or 'is not installed: this is its source'}"
    yield f"Python {platform.python_version()}"
    for package in BASE:
        yield f"{package} {version_of(package) or 'is not installed'}"
    seen: set[str] = set()
    for extra, packages in PACKAGES.items():
        for package in (one for one in packages if one not in seen):
            name = DISTRIBUTIONS.get(package, package)
            yield f"{name} {version_of(name) or f'is not installed: {install_command(extra)}'}"
        seen.update(packages)
