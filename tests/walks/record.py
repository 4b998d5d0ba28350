"""Runs walks, and writes their transcripts anew: `python -m tests.walks.record [NAME ...]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.walks.transcript import Step, environment_of_a_user, read_transcript, run_step

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WALKS = tuple(sorted(path.stem for path in HERE.glob("*.txt")))
CHECKOUT = ("ldm_vae", "train", "tools", "configs")  # of it a walk sees these, beside its own scripts


def walk(name: str, folder: Path) -> Iterator[tuple[Step, Step]]:
    """Runs the commands of a walk in a folder. Yields each step as it is stored, and as it was seen now."""
    for top in CHECKOUT:
        (folder / top).symlink_to(ROOT / top)
    for script in (HERE / name).glob("*"):
        (folder / script.name).write_bytes(script.read_bytes())
    for step in read_transcript(HERE / f"{name}.txt"):
        yield step, Step(step.command, step.comments, run_step(step.command, folder, environment_of_a_user()))


def record(name: str) -> None:
    with TemporaryDirectory(prefix="walk-") as folder:
        text = ""
        for _, seen in walk(name, Path(folder)):
            print(seen.text(), end="", flush=True)
            text += seen.text()
    (HERE / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    for name in sys.argv[1:] or WALKS:
        record(name)
