"""python -m tools.stand_in step RECIPE [a.b=value ...]: counts a training step on a device that pretends to be a GPU.

python -m tools.stand_in table RECIPE ... [a.b=value ...]: steps of several recipes in each precision, as a table.

python -m tools.stand_in run MODULE [ARGUMENT ...]: runs `python -m MODULE ARGUMENT ...` on that device.

Counts are printed, or written to a file as JSON. What runs on the device is imported once that is on.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from ldm_vae.ending import told_in_a_line
from tools.stand_in.device import stand_in
from tools.stand_in.record import Counts, counts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Images = Annotated[int, typer.Option(help="images of one forward pass")]
Side = Annotated[int, typer.Option(help="their height and width, pixels")]
Json = Annotated[Path | None, typer.Option("--json", help="where the counts are written; by default they are printed")]
NO_DATA = ("data.train=none", "data.validation=null", "output=none", "log.trackers=[]")  # a step needs none


@app.command()
def step(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(help="changes to it: a.b=value ...")] = None,
    images: Images = 8,
    side: Side = 256,
    json_file: Json = None,
) -> None:
    """Count the last step of a recipe, which has every loss on."""
    with stand_in(values=False):
        from ldm_vae.recipe import load_recipe
        from tools.stand_in.scenes import training_step
        from train.recipe import Recipe

        _tell(training_step(load_recipe(Recipe, recipe, [*NO_DATA, *(overrides or [])]), images, side), json_file)


@app.command()
def table(
    arguments: Annotated[list[str], typer.Argument(help="YAML recipes, and changes to all of them: a.b=value ...")],
    images: Images = 8,
    side: Side = 256,
) -> None:
    """Print a table in Markdown: the last step of each recipe in each precision."""
    changes = [argument for argument in arguments if "=" in argument]
    print(
        "| recipe | precision | changes | kernels | waits | GiB at the peak | an image, GiB |",
        "|---" * 7 + "|",
        sep="\n",
    )
    with stand_in(values=False):
        from ldm_vae.recipe import load_recipe
        from tools.stand_in.scenes import PRECISIONS, training_step
        from train.recipe import Recipe

        for file in [Path(argument) for argument in arguments if "=" not in argument]:
            for precision, *more in PRECISIONS:
                recipe = load_recipe(Recipe, file, [*NO_DATA, precision, *more, *changes])
                found = training_step(recipe, images, side)
                numbers = f"{found.kernels} | {sum(found.waits.values())} | {found.peak / 2**30:.1f}"
                each = (found.peak - found.state) / images / 2**30
                shown = ", ".join(f"`{change}`" for change in [*more, *changes])
                print(f"| `{file.stem}` | {recipe.precision} | {shown} | {numbers} | {each:.2f} |", flush=True)


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    module: Annotated[str, typer.Argument(help="such as train")],
    arguments: Annotated[list[str] | None, typer.Argument(help="of the module")] = None,
    refuse: Annotated[int | None, typer.Option(help="number of the allocation that finds no memory")] = None,
    json_file: Json = None,
) -> None:
    """Run a module as `python -m` does, on the device."""
    sys.argv = [module, *(arguments or [])]
    with stand_in() as record:
        record.refuse = refuse
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            _tell(counts(record, record.now), json_file)


def _tell(found: Counts, file: Path | None) -> None:
    text = json.dumps(found.to_json(), indent=1)
    if file is None:
        print(text)
    else:
        file.write_text(text + "\n")


if __name__ == "__main__":
    with told_in_a_line("stand_in"):
        app()
