"""`ldm-vae report`: writes a run, or several, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.cli.options import command_line, writable
from ldm_vae.extras import require
from ldm_vae.printable import say


def report(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders that training wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=writable, help="Where to write; default: report.html in the first run."),
    ] = None,
    shards: Annotated[
        str | None, typer.Option(metavar="SHARDS", help="Held-out images, instead of the recipe's validation shards.")
    ] = None,
) -> None:
    """Show a run in one HTML file, or several side by side.

    Shows curves, held-out images with their reconstructions, metrics, latents, diagnostics and the recipe. For several
    runs it compares curves, metrics and recipes, and shows the rest of the first run. Where something is missing, the
    file names the command that makes it.
    """
    require("report", "report")
    from ldm_vae.report.page import write_report

    say(str(write_report(runs, output, shards, command_line(context))))
