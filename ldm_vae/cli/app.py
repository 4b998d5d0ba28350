"""The `ldm-vae` command: its list of subcommands, and how errors are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from ldm_vae.choices import FORMER_PRECISIONS
from ldm_vae.data.images.quiet import quiet_decoders
from ldm_vae.ending import told_in_a_line
from ldm_vae.printable import prepare_output
from ldm_vae.waiting import choose_waiting

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
FORMER_WORDS = {"dtype": "precision"} | FORMER_PRECISIONS  # options and their values, as 0.1.0 spelled them


def build_app(asked: str | None) -> typer.Typer:
    """The app with the subcommand `asked`. Every other subcommand is only a line on the help page.

    So `ldm-vae --help` answers at once: the modules of subcommands import torch, and only the one in use is imported.
    """
    app = typer.Typer(name="ldm-vae", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback(context_settings={"token_normalize_func": _word_of_today})(_help_page)
    for name, summary in COMMANDS.items():
        if name == asked:
            app.command(name)(getattr(import_module(f"ldm_vae.cli.{name}"), name))
        else:
            app.command(name, help=summary)(_not_asked)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script. What ends it is told in one line on stderr (`ldm_vae.ending`)."""
    prepare_output()
    quiet_decoders()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    choose_waiting()
    try:
        with told_in_a_line("ldm-vae"):
            build_app(arguments[0] if arguments else None)(arguments, obj=arguments)
    except KeyboardInterrupt:  # during imports; later typer handles it
        sys.exit(130)


def _help_page() -> None:
    """Measure, export and use latent codecs. MODEL is a run, a checkpoint or an exported folder; SHARDS is a
    folder, a glob, a brace pattern or a URL."""


def _word_of_today(word: str) -> str:
    """An option or a value as it is spelled now; scripts that use the former spelling go on working."""
    return FORMER_WORDS.get(word, word)


def _not_asked() -> None:
    raise AssertionError("build_app registers the real function of the subcommand that is run")
