"""Runs a function as a command: options by typer, and a UserError as one line on stderr with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer

from ldm_vae.errors import UserError
from ldm_vae.printable import say


def run_command(function: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Runs the function and ends the process.

    arguments: the command line; None: that of the process.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app(arguments)
    except UserError as error:
        say(f"{function.__name__}: {error}", error=True)
        sys.exit(2)
