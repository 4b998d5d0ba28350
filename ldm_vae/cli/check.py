"""`ldm-vae check`: finds what is wrong with shards, and indexes them."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldm_vae.atomic import atomic_file, require_writable
from ldm_vae.cli.options import Json
from ldm_vae.cli.summary import REASONS_SHOWN
from ldm_vae.data.shards.disk import is_file
from ldm_vae.data.shards.left_out import group_reasons
from ldm_vae.errors import UserError
from ldm_vae.printable import counted, printable, say
from ldm_vae.quantities import size

if TYPE_CHECKING:
    from ldm_vae.data.shards.check import Problem, Report


def check(
    shards: Annotated[
        str,
        typer.Argument(
            metavar="SHARDS|LATENTS", help="Shards or a folder of images; or a folder that `ldm-vae encode` wrote."
        ),
    ],
    decode: Annotated[bool, typer.Option("--decode", help="Read and decode every picture, label and text.")] = False,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help="Channels of the images. Default: 3, and any of npy and tiff without --decode."),
    ] = None,
    write_index: Annotated[
        bool, typer.Option("--write-index", help="Write index.json without the samples that cannot be used.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(metavar="SHARDS", help="For LATENTS: the image shards that they should be of.")
    ] = None,
    json: Json = None,
) -> None:
    """Find what is wrong with shards, and index them; or with latents.

    Finds truncated or damaged tars, keys that repeat or interleave, names that webdataset reads differently, samples
    without a picture, links, devices and paths that leave the folder, and disagreement with index.json. It decodes a
    few samples of each shard, and all of a shard where one of these is broken. The exit code is 1 if anything is wrong.

    Of latents, finds shards that are unfinished or damaged, keys that repeat, files of others; with --source also what
    was made from images that have changed or are gone.
    """
    from ldm_vae.cli.check_latents import show_check
    from ldm_vae.latents.format import LATENTS_FILE

    if is_file(Path(shards) / LATENTS_FILE):
        if decode or write_index:
            raise UserError(f"{shards} holds latents", "--decode and --write-index are for shards of images")
        show_check(Path(shards), source, json)
    elif source is not None:
        raise UserError(f"{shards} holds no latents", "--source is for a folder that `ldm-vae encode` wrote")
    else:
        _check_images(shards, json, decode=decode, channels=channels, write_index=write_index)


def _check_images(shards: str, json: Path | None, *, decode: bool, channels: int | None, write_index: bool) -> None:
    from ldm_vae.data.shards.check import LOOKED_AT, check_shards, index_folders
    from ldm_vae.data.shards.index import save_index
    from ldm_vae.data.shards.shard import INDEX_FILE
    from ldm_vae.data.shards.storage import expand_shards

    folders = index_folders(shards) if write_index else []
    for folder in folders:
        require_writable(folder / INDEX_FILE)
    reports = list(check_shards(shards, decode=decode, channels=channels))
    _print(reports)
    if not decode:
        typer.echo(f"decoded {LOOKED_AT} samples of each shard, all where one is broken; --decode looks at all")
    if json is not None:
        with atomic_file(json) as stage:
            stage.write_text(json_format.dumps(_reports_to_json(reports), indent=2) + "\n")
    for folder in folders:
        readable = {report.shard.url: report.shard for report in reports if report.shard is not None}
        if gone := [url for url in expand_shards(str(folder)) if url not in readable]:
            what = f"{gone[0]} could not be read to its end, so that {folder / INDEX_FILE} stays as it was"
            raise UserError(what, "nothing may change the shards meanwhile; run this again")
        path = save_index([readable[url] for url in readable if Path(url).parent == folder], folder / INDEX_FILE)
        say(f"wrote {path}")
    if any(report.problems for report in reports):
        raise typer.Exit(1)


def _print(reports: Sequence[Report]) -> None:
    table = Table()
    for column in ("shard", "samples", "wrong", "what", "first"):
        table.add_column(column, overflow="fold")  # nothing is cut short
    for report in reports:
        for row, (reason, count, first) in enumerate(_by_reason(report.problems)):
            name, samples = (report.url, str(report.shard.samples) if report.shard else "") if row == 0 else ("", "")
            table.add_row(escape(printable(name)), samples, str(count), escape(printable(reason)), escape(first))
    shards = [report.shard for report in reports if report.shard is not None]
    wrong = {report.url for report in reports if report.problems}
    whole = [shard for shard in shards if shard.url not in wrong]
    table.add_row(counted(len(whole), "whole shard"), str(sum(shard.samples for shard in whole)), "0")
    console = Console()
    console.print(table)
    usable = counted(sum(shard.samples for shard in shards), "sample")
    console.print(f"{counted(len(shards), 'shard')}, {usable} to use, {size(sum(shard.size for shard in shards))}")


def _by_reason(problems: Sequence[Problem]) -> Iterator[tuple[str, int, str]]:
    """Reason, count and first member, for at most REASONS_SHOWN reasons; the others are summed up in one row."""
    reasons = group_reasons((problem.member, problem.reason) for problem in problems)
    for reason in reasons[:REASONS_SHOWN]:
        yield reason.text, reason.count, printable(reason.example)
    if rest := reasons[REASONS_SHOWN:]:
        yield f"{counted(len(rest), 'more reason')}: see --json", sum(reason.count for reason in rest), ""


def _reports_to_json(reports: Sequence[Report]) -> dict[str, Any]:
    shards = [report.shard for report in reports if report.shard is not None]
    return {
        "shards": len(shards),
        "samples": sum(shard.samples for shard in shards),
        "bytes": sum(shard.size for shard in shards),
        "problems": [
            {"url": report.url, "member": problem.member, "reason": problem.reason}
            for report in reports
            for problem in report.problems
        ],
    }
