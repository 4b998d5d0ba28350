"""Runs a function as a command: options by typer, and what ends it as one line on stderr."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from ldm_vae.ending import told_in_a_line


def run_command(function: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Runs the function and ends the process.

    arguments: the command line; None: that of the process.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    with told_in_a_line(function.__name__):
        app(arguments)
