"""The command of `every_call.py`: runs it, keeps the results in a file, so that it can go on, and prints a table."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ldm_vae.atomic import append
from ldm_vae.cli.app import main as ldm_vae_command
from ldm_vae.errors import UserError
from tools.command import run_command
from tools.every_call import MEMORY, Harness, disturb, faults_of, undisturbed
from tools.every_call_jobs import Job, jobs
from tools.faults import MEETS, with_library

WRONGS = {  # what can be wrong, and how the table calls it
    "no line": "no line, or a traceback",
    "killed": "killed or hangs",
    "less": "exit code 0 with less",
    "lost": "lost something",
    "rerun": "rerun differs",
}


def every_call(
    only: Annotated[list[str] | None, typer.Option(metavar="JOB", help="Only these jobs; default: all.")] = None,
    sample: Annotated[int, typer.Option(min=1, metavar="K", help="Only every K-th fault of each job.")] = 1,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the results are kept, a line each; a second run goes on from there."),
    ] = None,
) -> None:
    """Let every call of a small job of each command fail, and print what came of it."""
    known = jobs()
    if unknown := set(only or ()) - {job.name for job in known}:
        raise UserError(f"--only {unknown.pop()}", f"there are {', '.join(job.name for job in known)}")
    kept = _read(results)
    with tempfile.TemporaryDirectory(prefix="every-call-") as folder:
        harness = Harness(Path(folder), call_command)
        harness.prepare()
        for job in known:
            if not only or job.name in only:
                kept += _run(harness, job, sample, kept, results)
    print(table(kept))
    if any(is_wrong(row) for row in kept):
        sys.exit(1)


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Whether a result is wrong. Native libraries may end the process without memory, as long as nothing is lost."""
    return bool(set(row["wrong"]) - ({"killed"} if row["error"] == MEMORY else set()))


def call_command(job: Job) -> None:
    """Runs a job as its command does, in this process."""
    if job.trains:
        sys.argv = ["train", *job.words]
        runpy.run_module("train", run_name="__main__", alter_sys=True)
    else:
        ldm_vae_command(job.words)


def _run(
    harness: Harness, job: Job, sample: int, kept: Sequence[dict[str, Any]], results: Path | None
) -> list[dict[str, Any]]:
    right = undisturbed(harness, job)
    known = {(row["job"], row["error"], row["call"], row["for_good"]) for row in kept}
    rows = []
    for fault in islice(faults_of(right), 0, None, sample):
        if (job.name, fault.error, fault.call, fault.for_good) in known:
            continue
        ended, wrong = disturb(harness, job, right, fault)
        row: dict[str, Any] = {"job": job.name, "error": fault.error, "call": fault.call, "for_good": fault.for_good}
        row |= {"what": ended.what, "code": ended.code, "wrong": wrong}
        if wrong:
            row["says"] = ended.errors[-2000:]
        rows.append(row)
        if results is not None:
            append(results, json.dumps(row) + "\n")
    return rows


def _read(results: Path | None) -> list[dict[str, Any]]:
    if results is None or not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of results in Markdown: a line for each job, and one for all."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for name in (row["job"], "all"):
            count = counts.setdefault(name, Counter())
            how = "from there on" if row["for_good"] and row["error"] != MEMORY else "once"
            count[row["error"] if row["error"] == MEMORY else f"{row['error']} {how}"] += 1
            count.update(row["wrong"])
            if not row["wrong"]:
                count["undisturbed" if row["code"] == 0 else "refused"] += 1
    counts |= {"all": counts.pop("all", Counter())}  # at the end
    injected = {f"{error} {how}": f"{error} {how}" for error in MEETS for how in ("once", "from there on")}
    columns = injected | {MEMORY: "little memory", "undisturbed": "undisturbed result", "refused": "told in a line"}
    columns |= WRONGS
    lines = [f"| job | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
    for job, count in counts.items():
        lines.append(f"| {job} | {' | '.join(f'{count[name]:,}' for name in columns)} |")
    return "\n".join(lines)


def start(arguments: Sequence[str]) -> int:
    """Runs this command in a process that has the library. Returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="every-call-") as folder:
        environment = with_library(Path(folder))
        if environment is None:
            print("reliability: there is no C compiler (cc): install one, such as gcc", file=sys.stderr)
            return 2
        command = [sys.executable, "-m", "tools.every_call_results", *arguments]
        return subprocess.run(command, env={**environment, "OMP_NUM_THREADS": "1"}).returncode


if __name__ == "__main__":
    torch.set_num_threads(1)  # children that are forked have no threads
    run_command(every_call)
