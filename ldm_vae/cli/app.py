"""The `ldm-vae` command: which subcommands there are, and how errors reach the person."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from ldm_vae.errors import UserError

COMMANDS = {
    "shards": "Pack a folder of images into WebDataset shards with an index.",
    "check": "Find what is wrong with shards, and index them.",
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
    """The app with the command `asked` for; every other is only a line of the help page.

    So `ldm-vae --help` is instant: the modules of commands import torch, and only the one asked for is imported.
    """
    app = typer.Typer(name="ldm-vae", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_describe)
    for name, summary in COMMANDS.items():
        if name == asked:
            app.command(name)(getattr(import_module(f"ldm_vae.cli.{name}"), name))
        else:
            app.command(name, help=summary)(_not_asked)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script. A UserError becomes one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        build_app(arguments[0] if arguments else None)(arguments, obj=arguments)
    except UserError as error:
        print(f"ldm-vae: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # while importing, before typer takes care of it
        sys.exit(130)


def _describe() -> None:
    """Measure, export and use latent codecs. MODEL is a run, a checkpoint or a diffusers folder; SHARDS a folder,
    glob, brace pattern or URL."""


def _not_asked() -> None:
    raise AssertionError("build_app registers the real function of the command that is run")
