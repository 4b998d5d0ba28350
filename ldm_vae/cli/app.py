"""The `ldm-vae` command: its list of subcommands, and how errors are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from ldm_vae.choices import FORMER_PRECISIONS
from ldm_vae.cli.train import train
from ldm_vae.data.images.quiet import quiet_decoders
from ldm_vae.ending import told_in_a_line
from ldm_vae.printable import prepare_output, say
from ldm_vae.versions import versions_in_words
from ldm_vae.waiting import choose_waiting

COMMANDS = {
    "shards": "Pack a folder of images into WebDataset shards with an index.",
    "check": "Find what is wrong with shards, and index them; or with latents.",
    "train": "Train a codec by a recipe, from a checkout of the project.",
    "evaluate": "Measure how well codecs reconstruct the images of some shards.",
    "inspect": "Find out whether reconstruction is any good, what is wrong with a latent space, and what to try.",
    "report": "Show a run in one HTML file, or several side by side.",
    "stats": "Measure the mean and standard deviation of a codec's latents.",
    "export": "Write a codec as a folder that diffusers loads.",
    "encode": "Turn image shards into latent shards.",
    "decode": "Turn latent shards back into images.",
    "roundtrip": "Measure stored latents against the images they were made of.",
    "sample": "Draw new pictures from a model of the textbook family.",
}
FORMER_WORDS = {"dtype": "precision"} | FORMER_PRECISIONS  # options and their values, as 0.1.0 spelled them


def build_app(asked: str | None) -> typer.Typer:
    """The app with the subcommand `asked`. Every other subcommand is only a line on the help page.

    A module of a subcommand imports what it works with when it is called, so that `--help` waits for nothing.
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
    try:
        with told_in_a_line("ldm-vae"):
            if arguments[:1] == ["train"]:
                train(arguments[1:])
            choose_waiting()
            build_app(arguments[0] if arguments else None)(arguments, obj=arguments)
    except KeyboardInterrupt:  # during imports; later typer handles it
        sys.exit(130)


def _show_versions(asked: bool) -> None:
    if asked:
        for line in versions_in_words():
            say(line)
        raise typer.Exit


def _help_page(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_versions, is_eager=True, help="Name the versions of all that matters."
        ),
    ] = False,
) -> None:
    """Measure, export and use latent codecs. MODEL is a run, a checkpoint, an exported folder or a Hub
    id; SHARDS is a folder, a glob, a brace pattern or a URL of shards, or a folder of images."""


def _word_of_today(word: str) -> str:
    """An option or a value as it is spelled now; scripts that use the former spelling go on working."""
    return FORMER_WORDS.get(word, word)


def _not_asked() -> None:
    raise AssertionError("build_app registers the real function of the subcommand that is run")
