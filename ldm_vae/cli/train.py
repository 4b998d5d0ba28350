"""`ldm-vae train`: the trainer, which the wheel leaves out, in a checkout of the project.

The process becomes `python -m train`, instead of starting or importing it: its number stays, so that signals, exit
codes and launchers work as if that had been typed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import NoReturn

import ldm_vae
from ldm_vae.errors import UserError

CHECKOUT = ("train/__main__.py", "ldm_vae/__init__.py", "configs")  # what the trainer needs, and no other folder has
SOURCES = ("repository", "source", "homepage")  # labels of URLs in the metadata, the best first


def train(arguments: Sequence[str]) -> NoReturn:
    """Goes on as `python -m train ARGUMENT...`, with the checkout's package. Raises UserError without a checkout."""
    checkout = find_checkout()
    if checkout is None:
        raise UserError(
            "training runs from a checkout of the project, and there is none here",
            f"{clone_command()}, change into its folder, and run it again",
        )
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a train.py in the current folder is not the trainer.
    command = [sys.executable, "-P", "-m", "train", *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})


def find_checkout() -> Path | None:
    """The current folder or the one that this package lies in, if it is a checkout of the project."""
    for folder in (Path.cwd(), Path(ldm_vae.__file__).parent.parent):
        if all((folder / name).exists() for name in CHECKOUT):
            return folder
    return None


def clone_command() -> str:
    """The command that makes a checkout; in words where the package does not say where it comes from."""
    try:
        urls = metadata("ldm-vae").get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    labelled = {label.strip().lower(): url.strip() for label, _, url in (entry.partition(",") for entry in urls)}
    found = next((labelled[label] for label in SOURCES if label in labelled), None)
    return "clone the repository" if found is None else f"git clone {found}"
