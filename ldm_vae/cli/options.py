"""Options that several subcommands share."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_vae.atomic import require_writable
from ldm_vae.choices import DEFAULT_FILTER, RESIZE_FILTERS, ResizeFilter
from ldm_vae.choices import Precision as Chosen
from ldm_vae.errors import UserError
from ldm_vae.passwords import without_secrets

if TYPE_CHECKING:
    from ldm_vae.data.images.fit import ImageConfig

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run, checkpoint, exported folder or Hub id.")]
Shards = Annotated[
    str, typer.Argument(metavar="SHARDS", help="Shards: folder, glob, brace pattern, URL. Or a folder of images.")
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="short:N[:FILTER]",
        help="Resize the short side to N pixels; without it the images keep their size. "
        f"The filter is one of {', '.join(RESIZE_FILTERS)}; without it, {DEFAULT_FILTER}.",
    ),
]
Crop = Annotated[str | None, typer.Option(metavar="center:N", help="Cut a square of N pixels from the middle.")]
Precision = Annotated[Chosen, typer.Option(help="The type in which networks compute.")]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Images in a batch of each process; images in a batch have one size.")
]


def writable(path: Path | None) -> Path | None:
    """A callback of options: refuses a file that could not be written, before the work is done."""
    if path is not None:
        require_writable(path)
    return path


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=writable, help="Write the numbers to FILE."),
]


def command_line(context: typer.Context) -> str:
    """The command as the person typed it, without passwords, for cards and reports."""
    return shlex.join(["ldm-vae", *map(without_secrets, context.obj)])


def image_config(channels: int, resize: str | None, crop: str | None) -> ImageConfig:
    """How images are prepared, as --resize and --crop say. Raises UserError for any other wording."""
    from ldm_vae.data.images.fit import ImageConfig  # needs torch

    resize, chosen = _filter(resize)
    short, side = _pixels(resize, "--resize", "short"), _pixels(crop, "--crop", "center")
    if short is not None and side is not None and side > short:
        raise UserError(f"--crop {crop} is larger than --resize {resize}", "crop at most what the resize leaves")
    return ImageConfig(channels=channels, resize=short, resize_filter=chosen, crop=side, crop_mode="center")


def _filter(resize: str | None) -> tuple[str | None, ResizeFilter]:
    """The option without the filter, and the filter."""
    size, _, name = (resize or "").rpartition(":") if (resize or "").count(":") == 2 else (resize, "", DEFAULT_FILTER)
    for known in RESIZE_FILTERS:
        if name == known:
            return size, known
    raise UserError(f"--resize {resize}: there is no filter {name!r}", f"choose from {', '.join(RESIZE_FILTERS)}")


def _pixels(text: str | None, option: str, word: str) -> int | None:
    if text is None or text == "none":
        return None
    kind, _, number = text.partition(":")
    if kind != word or not number.isdecimal() or int(number) < 1:
        raise UserError(f"{option} {text!r}", f"write {word}:N with N in pixels, such as {word}:256, or none")
    return int(number)
