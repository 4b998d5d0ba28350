"""Runs `ldm-vae` once without a limit of memory and then under limits in steps, each in a forked child of its own.

    python under_limits.py REPORT FIRST LAST STEP COMMAND ARGUMENT...

FIRST, LAST and STEP are MiB beyond what the process takes before the command. OUT among the arguments becomes
REPORT.d/LIMIT, one for each. REPORT gets a line of JSON a run: limit, exit code (negative: a signal), stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch
import torchmetrics.functional.image  # noqa: F401

# What the commands import when they run: before the fork, so that a limit costs a second.
import ldm_vae.codec
import ldm_vae.data.images.depth
import ldm_vae.data.images.tiff
import ldm_vae.data.shards.check
import ldm_vae.evaluation.baselines
import ldm_vae.evaluation.store
import ldm_vae.interop.export
import ldm_vae.latents.check
import ldm_vae.latents.encode
import ldm_vae.latents.measure  # noqa: F401
from ldm_vae.cli import check, check_latents, encode, evaluate, evaluation_table, stats  # noqa: F401
from ldm_vae.cli.app import main


def run(arguments: list[str], limit: int | None, log: Path) -> int:
    """The exit code of the command in a child."""
    pid = os.fork()
    if pid == 0:
        code = 70  # of a child whose command neither ended nor raised
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 2)
            if limit is not None:
                taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (taken + limit * 2**20,) * 2)
            main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_all(report: Path, limits: list[int | None], arguments: list[str]) -> None:
    for limit in limits:
        place = report.with_suffix(".d") / str(limit)
        log = report.with_suffix(f".{limit}.log")
        given = [str(place) if argument == "OUT" else argument for argument in arguments]
        code = run(given, limit, log)
        with report.open("a") as file:
            file.write(json.dumps({"limit": limit, "code": code, "error": log.read_text(errors="replace")}) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    report, first, last, step = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    run_all(report, [None, *range(first, last, step)], sys.argv[5:])
