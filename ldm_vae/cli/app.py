"""The `ldm-vae` command: its list of subcommands, and how errors are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from ldm_vae.errors import UserError
from ldm_vae.machine import fault_of_machine

COMMANDS = {
    "shards": "Pack a folder of images into WebDataset shards with an index.",
    "check": "Find what is wrong with shards, and index them; or with latents.",
    "evaluate": "Measure how well codecs reconstruct the images of some shards.",
    "inspect": "Find out what is wrong with a latent space, and what to try.",
    "report": "Show a run in one HTML file, or several side by side.",
    "stats": "Measure the mean and standard deviation of a codec's latents.",
    "export": "Write a codec as a folder that diffusers loads.",
    "encode": "Turn image shards into latent shards.",
    "decode": "Turn latent shards back into images.",
    "roundtrip": "Measure stored latents against the images they were made of.",
}


def build_app(asked: str | None) -> typer.Typer:
    """The app with the subcommand `asked`. Every other subcommand is only a line on the help page.

    So `ldm-vae --help` answers at once: the modules of subcommands import torch, and only the one in use is imported.
    """
    app = typer.Typer(name="ldm-vae", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_help_page)
    for name, summary in COMMANDS.items():
        if name == asked:
            app.command(name)(getattr(import_module(f"ldm_vae.cli.{name}"), name))
        else:
            app.command(name, help=summary)(_not_asked)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script. A UserError, or a fault of the machine, becomes one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        build_app(arguments[0] if arguments else None)(arguments, obj=arguments)
    except UserError as error:
        print(f"ldm-vae: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        fault = fault_of_machine(error)
        if fault is None:
            raise
        print(f"ldm-vae: {fault}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # during imports; later typer handles it
        sys.exit(130)


def _help_page() -> None:
    """Measure, export and use latent codecs. MODEL is a run, a checkpoint or an exported folder; SHARDS is a
    folder, a glob, a brace pattern or a URL."""


def _not_asked() -> None:
    raise AssertionError("build_app registers the real function of the subcommand that is run")
