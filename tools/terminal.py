"""Takes a picture of a terminal in which a command runs, as SVG, for the README and the pages.

    python -m tools.terminal docs/training.svg "python -m train configs/demo_cpu.yaml"
    python -m tools.terminal narrow.svg "python -m train configs/demo_cpu.yaml" --columns 80 --until "step 40"

The command runs in a terminal of its own (a pty) of that size, so it draws bars and colours. The picture shows what
stands there when the command has ended or, with --until, when a text first does; then the command gets Ctrl-C.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from itertools import groupby
from pathlib import Path
from typing import Annotated

import pexpect
import pyte
import typer
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.text import Text

from ldm_vae.atomic import atomic_file
from ldm_vae.errors import UserError
from tools.command import run_command

LONGEST = 600.0  # seconds that the command may be silent
NAMES = {"brown": "yellow"}  # pyte's names of colours -> rich's
FONT_FROM_THE_NET = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def terminal(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The SVG to write.")],
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="What is typed. No shell reads it.")],
    columns: Annotated[int, typer.Option(min=20, help="Width of the terminal.")] = 80,
    rows: Annotated[int, typer.Option(min=4, help="Height of the terminal; empty rows at its end are left out.")] = 48,
    until: Annotated[str | None, typer.Option(help="Show the screen when this text first stands there.")] = None,
) -> None:
    """Show a terminal in which a command runs."""
    screen = watch(shlex.split(command), columns, rows, until)
    lines = [line(screen, row) for row in range(rows)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "green"), command, overflow="fold"))
    for text in lines:
        console.print(text, soft_wrap=True)
    with atomic_file(picture) as stage:
        stage.write_text(FONT_FROM_THE_NET.sub("", console.export_svg(title="")))
    print(f"{picture}: {columns} columns, {len(lines) + 1} lines, {picture.stat().st_size:,} bytes")


def watch(command: list[str], columns: int, rows: int, until: str | None) -> pyte.Screen:
    """The screen at the end of the command, or once `until` stands on it. Raises UserError where it never does."""
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)}
    options = {"env": environment, "timeout": LONGEST, "use_poll": True}  # select takes no number beyond 1023
    process = pexpect.spawn(command[0], command[1:], dimensions=(rows, columns), **options)
    try:
        while until is None or not any(until in text for text in screen.display):
            stream.feed(process.read_nonblocking(65536, timeout=LONGEST))
    except pexpect.EOF:
        if until is not None:
            raise UserError(f"{until!r} never stood on the screen", "see what the command prints") from None
    except pexpect.TIMEOUT:
        raise UserError(f"{command[0]} printed nothing for {LONGEST:.0f} s", "see what it waits for") from None
    finally:
        process.sendintr()
        process.close(force=True)
    return screen


def line(screen: pyte.Screen, row: int) -> Text:
    """A row of the screen, with its colours."""
    cells = [screen.buffer[row][column] for column in range(screen.columns)]
    text = Text()
    for look, run in groupby(cells, style):
        text.append("".join(cell.data for cell in run), look)
    text.rstrip()
    return text


def style(cell: Char) -> Style:
    return Style(
        color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold, italic=cell.italics, reverse=cell.reverse
    )


def colour(name: str) -> str | None:
    """pyte says `default`, the name of a colour, or six hexadecimal digits."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    bright = name.startswith("bright")
    plain = NAMES.get(name.removeprefix("bright"), name.removeprefix("bright"))
    return f"bright_{plain}" if bright else plain


if __name__ == "__main__":
    run_command(terminal)
