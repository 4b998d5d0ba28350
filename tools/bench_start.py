"""Measures how long commands take to answer: seconds and CPU seconds, beside an older commit.

    python -m tools.bench_start              this checkout
    python -m tools.bench_start COMMIT       and that commit, in turns

Every command runs in a process of its own, in this environment. A first run of each, which fills the caches of the
system, is not counted; the medians of the others are printed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import typer

from tools.command import run_command
from tools.golden import ONE_THREAD, ROOT, worktree
from tools.photographs import write_photographs

RECIPE = "configs/kl_f8_c4.yaml"
MISTYPED = "data.trian=x"
COMMANDS = {  # as typed -> arguments of Python; {data} is a folder with shards of photographs
    "python -c 'import ldm_vae'": ["-c", "import ldm_vae"],
    "ldm-vae --help": ["-m", "ldm_vae", "--help"],
    "ldm-vae --version": ["-m", "ldm_vae", "--version"],
    "ldm-vae encode --help": ["-m", "ldm_vae", "encode", "--help"],
    "ldm-vae evaluate --help": ["-m", "ldm_vae", "evaluate", "--help"],
    "python -m train --help": ["-m", "train", "--help"],
    "python -m train --fields data": ["-m", "train", "--fields", "data"],
    f"python -m train RECIPE {MISTYPED} (mistyped)": ["-m", "train", RECIPE, MISTYPED],
    "python -m train RECIPE --dry-run": [
        *("-m", "train", RECIPE, "--dry-run", "output={data}/run"),
        *("data.train={data}/train", "data.validation={data}/validation"),
    ],
}


class Time(NamedTuple):
    """Of one process: seconds by the clock, and on processors."""

    wall: float
    processor: float


def bench_start(
    base: Annotated[str | None, typer.Argument(metavar="COMMIT", help="Commit to compare this checkout with.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each command; medians are printed.")] = 3,
) -> None:
    """Measure how long commands take to answer."""
    with TemporaryDirectory(prefix="start-") as folder, ExitStack() as stack:
        data = Path(folder) / "data"
        write_photographs(data / "photographs")
        for split in ("train", "validation"):
            run(["-m", "ldm_vae", "shards", str(data / "photographs" / split), str(data / split)], ROOT)
        checkouts = [ROOT] if base is None else [stack.enter_context(worktree(base, Path(folder) / "base")), ROOT]
        heads = ["now"] if base is None else [base, "now"]
        print("| command |" + "".join(f" {head}: s | CPU s |" for head in heads))
        print("|---|" + "---|---|" * len(heads))
        for typed, arguments in COMMANDS.items():
            command = [argument.format(data=data) for argument in arguments]
            code = 2 if MISTYPED in arguments else 0
            times = [[run(command, checkout, code) for checkout in checkouts] for _ in range(rounds + 1)][1:]
            print(f"| `{typed}` |" + "".join(map(cells, zip(*times, strict=True))), flush=True)


def cells(times: Sequence[Time | None]) -> str:
    """Medians, for the table; of a command that a commit does not have, dashes."""
    known = [one for one in times if one is not None]
    if len(known) < len(times):
        return " – | – |"
    wall, processor = (statistics.median(column) for column in zip(*known, strict=True))
    return f" {wall:.2f} | {processor:.2f} |"


def run(arguments: Sequence[str], checkout: Path, code: int = 0) -> Time | None:
    """Runs Python there. None where it ends with another code: a command that breaks is not quick."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode != code:
        return None
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Time(wall, processor)


if __name__ == "__main__":
    run_command(bench_start)
