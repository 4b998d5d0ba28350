"""A function as a command of its own: options by typer, and a UserError as one line on stderr with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer

from ldm_vae.errors import UserError


def run_command(function: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """arguments: those of the process where None. Ends the process, as commands do."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app(arguments)
    except UserError as error:
        print(f"{function.__name__}: {error}", file=sys.stderr)
        sys.exit(2)
