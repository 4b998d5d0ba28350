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

from ldm_vae.errors import UserError
from tools.command import run_command
from tools.golden import ONE_THREAD, ROOT, worktree
from tools.photographs import write_photographs

RECIPE = "configs/kl_f8_c4.yaml"
COMMANDS = {  # as typed -> arguments of Python; {data} is a folder with shards of photographs
    "python -c 'import ldm_vae'": ["-c", "import ldm_vae"],
    "ldm-vae --help": ["-m", "ldm_vae", "--help"],
    "ldm-vae --version": ["-m", "ldm_vae", "--version"],
    "ldm-vae encode --help": ["-m", "ldm_vae", "encode", "--help"],
    "ldm-vae evaluate --help": ["-m", "ldm_vae", "evaluate", "--help"],
    "python -m train --help": ["-m", "train", "--help"],
    "python -m train --fields data": ["-m", "train", "--fields", "data"],
    "python -m train RECIPE data.trian=x (mistyped)": ["-m", "train", RECIPE, "data.trian=x"],
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
            times = [[run(command, checkout) for checkout in checkouts] for _ in range(rounds + 1)][1:]
            cells = [
                f" {statistics.median(one.wall for one in column):.2f} |"
                f" {statistics.median(one.processor for one in column):.2f} |"
                for column in zip(*times, strict=True)
            ]
            print(f"| `{typed}` |" + "".join(cells), flush=True)


def run(arguments: Sequence[str], checkout: Path) -> Time:
    """Runs Python there. Raises UserError where it prints a traceback: a command that breaks is not quick."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - start, os.times()
    if "Traceback" in done.stderr:
        raise UserError(f"{' '.join(arguments)} in {checkout}", done.stderr.strip().splitlines()[-1])
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Time(wall, processor)


if __name__ == "__main__":
    run_command(bench_start)
