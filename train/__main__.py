"""python -m train RECIPE [a.b=value ...]: trains a codec, or continues the training.

python -m train --fields [SECTION]: explains the fields of a recipe.

What is asked for is imported then: --help and a mistyped option answer without waiting for torch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.data.images.quiet import quiet_decoders
from ldm_vae.ending import told_in_a_line
from ldm_vae.passwords import without_secrets
from ldm_vae.printable import PrintableFormatter, prepare_output, say
from ldm_vae.ranks import is_first_to_report
from ldm_vae.versions import versions_in_words
from ldm_vae.waiting import choose_waiting

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train_command(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="YAML recipe, such as configs/demo_cpu.yaml")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="changes to it: a.b=value ...")] = None,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="say what every field means, or those of a SECTION in place of RECIPE, stop"),
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="name the versions of what matters, stop")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="say what would be trained and what a step costs, check the data, stop"),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="with --dry-run: look at more images, time a step, say how long it all takes"),
    ] = False,
) -> None:
    """Train a codec by a recipe. Run again, it goes on from its last checkpoint."""
    prepare_output()
    quiet_decoders()
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.argv[1:] = map(without_secrets, sys.argv[1:])  # trackers store the command line
    logging.getLogger("train").setLevel(logging.INFO)
    with told_in_a_line("train", tell):
        if version:
            for line in versions_in_words():
                say(line)
            return
        if fields:
            explain_fields([] if recipe is None else [str(recipe), *(overrides or [])])
            return
        if recipe is None:
            context.fail("Missing argument 'RECIPE'.")
        follow_recipe(recipe, overrides or [], dry_run=dry_run or measure, measure=measure)


def explain_fields(asked: Sequence[str]) -> None:
    """Prints the meaning of the sections or fields of these names, or of all where none is given."""
    from train.fields import show_fields

    show_fields(asked)


def follow_recipe(path: Path, overrides: Sequence[str], *, dry_run: bool, measure: bool) -> None:
    """Reads the recipe, and trains or describes what it says. Exits after a signal."""
    from ldm_vae.recipe import changes, load_recipe
    from train.recipe import Recipe

    recipe = load_recipe(Recipe, path, overrides)  # a mistake in it is told before the rest is loaded
    if dry_run:
        from train.dry_run import describe_recipe

        describe_recipe(recipe, changes(path, overrides, Recipe), measure=measure)
        return
    from train.preempt import PREEMPTED, Preempted
    from train.run import run_training

    try:
        run_training(recipe)
    except Preempted as reason:
        tell(f"stopped by {reason}; run it again to go on")
        sys.exit(PREEMPTED)


def tell(message: str) -> None:
    """Prints how a run ended: once, although several ranks may say it."""
    if is_first_to_report(message):
        say(f"train: {message}", error=True)


if __name__ == "__main__":
    choose_waiting()
    app()
