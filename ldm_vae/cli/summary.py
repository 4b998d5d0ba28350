"""What commands on data say at the end, and in a dry run: what was left out and why, bytes, speed, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ldm_vae.data.shards.left_out import group_reasons
from ldm_vae.errors import UserError
from ldm_vae.printable import counted, printable, say
from ldm_vae.quantities import duration, rate, size

REASONS_SHOWN = 5  # in one place of the output: why images are left out, what is wrong with a shard
LONGEST_REASON = 160  # characters of one: two lines of a terminal
DRY_RUN = "dry run: nothing is written"


def per_image(total: float, images: int) -> str:
    """Such as "34.1 MB (21.3 kB an image)"."""
    return f"{size(total)} ({size(total / max(images, 1))} an image)"


def speed(images: int, seconds: float) -> str:
    """Such as "400 images in 12 s (32.5 images/s)"."""
    return f"{counted(images, 'image')} in {duration(seconds)} ({rate(images, seconds)} images/s)"


def say_reasons(found: Iterable[tuple[str, str]]) -> None:
    """Prints a line for each reason, the most frequent first, with how many there are and an example.

    found: (name, reason) of all.
    """
    reasons = sorted(group_reasons(found), key=lambda reason: -reason.count)
    for reason in reasons[:REASONS_SHOWN]:
        say(f"  {reason.count:,} x {printable(reason.text, LONGEST_REASON)} ({reason.example})")
    if rest := reasons[REASONS_SHOWN:]:
        say(f"  {sum(reason.count for reason in rest):,} for {counted(len(rest), 'more reason')}")


def say_row(name: str, text: str) -> None:
    """Prints a row of a dry run."""
    say(f"{name:<9} {text}")


def say_room(out: Path, needed: float) -> None:
    """Prints where will be written, and the room there. Raises UserError if it is too little.

    needed: bytes.
    """
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{out} would take {size(needed)}, and its disk has {size(free)} free"
        raise UserError(what, "make room there, or name a folder on another disk")
    say_row("disk", f"{size(free)} free for {out}")
