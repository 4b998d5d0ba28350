"""`ldm-vae check LATENTS`: shows what is wrong with a folder of latents."""

from __future__ import annotations

import json as json_format
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldm_vae.atomic import atomic_file
from ldm_vae.data.shards.index import load_index
from ldm_vae.latents.check import LatentProblem, check_latents
from ldm_vae.printable import counted, printable
from ldm_vae.quantities import size


def show_check(folder: Path, source: str | None, json: Path | None) -> None:
    """Prints the table and writes the JSON. Exits with 1 if anything is wrong.

    source: the shards of images that the latents should be of.
    """
    report = check_latents(folder, None if source is None else load_index(source))
    if json is not None:
        with atomic_file(json) as stage:
            stage.write_text(json_format.dumps(asdict(report), indent=2) + "\n")
    console = Console()
    if report.problems:
        console.print(_table(report.problems))
    whole = f"{counted(report.shards, 'whole shard')}, {counted(report.samples, 'latent')}, {size(report.bytes)}"
    console.print(whole)
    if report.version == 1:
        console.print("version 1 holds no digests: a change that keeps sizes is not seen; encode into a new folder")
    if source is None and not report.problems:
        console.print("checked alone; --source SHARDS also compares with the images")
    if report.problems:
        raise typer.Exit(1)


def _table(problems: list[LatentProblem]) -> Table:
    """A row for each shard and kind of problem, with its number and the first one."""
    table = Table()
    for column in ("shard", "what", "number", "first", "why"):
        table.add_column(column, overflow="fold")  # nothing is cut short
    groups: dict[tuple[str, str], list[LatentProblem]] = defaultdict(list)
    for problem in problems:
        groups[problem.shard, problem.kind].append(problem)
    for (shard, kind), found in groups.items():
        cells = (shard, kind, str(len(found)), found[0].key, found[0].reason)
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table
