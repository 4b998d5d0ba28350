"""`ldm-vae encode` as ranks of a job, forked from a server that has imported torch: tests can start and kill many."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from ldm_vae.cli.app import main

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["ldm_vae.cli.encode", "ldm_vae.latents.encode", "torch"])


def start(arguments: Sequence[object], world: int, errors: Path = Path(os.devnull)) -> list[ForkServerProcess]:
    """One process for each rank. `exitcode` is that of the command, or minus the signal that killed it.

    errors: the file that takes what they say on stderr.
    """
    words = ["encode", *map(str, arguments)]
    processes = [SERVER.Process(target=_as_rank, args=(words, rank, world, errors)) for rank in range(world)]
    for process in processes:
        process.daemon = True  # ends with the test
        process.start()
    return processes


def finish(arguments: Sequence[object], world: int, errors: Path = Path(os.devnull)) -> list[int | None]:
    """Exit codes by rank."""
    processes = start(arguments, world, errors)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _as_rank(words: list[str], rank: int, world: int, errors: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    with errors.open("a") as sys.stderr:
        main(words)
