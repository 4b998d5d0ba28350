"""Transcripts of a terminal: read from a file, made by running the commands, and compared with numbers masked.

    # A comment.
    $ ldm-vae shards photographs shards/train
    shards/train: 8 images in 1 shard
    $ ldm-vae shards nowhere shards/other
    ldm-vae: nowhere not found: ...
    [exit 2]
    $ python -m train recipe.yaml ^C step 20
    ...

`^C TEXT` at the end of a command means that the person presses Ctrl-C once a line with TEXT is printed.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COMMAND, COMMENT, INTERRUPT = "$ ", "#", " ^C "
COLUMNS = 80
PROGRESS = re.compile(r"\d+%\|.*\||\[\d+:\d+<")  # lines that tqdm prints now and then: how many, the clock decides

# In this order; what is left are the words.
MASKS = (
    (re.compile(r"(device: cpu )\(.*\)"), r"\1(#)"),  # why it is no GPU depends on the build of torch
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,64}\b"), "#"),  # hashes
    (re.compile(r"\d{4}-\d{2}-\d{2}([T ][\d:.]+)?(\+[\d:]+|Z)?"), "#"),  # times
    (re.compile(r"\d+(:\d+)+"), "#"),  # durations, mm:ss
    (re.compile(r"[-+±]?\d[\d,]*\.?\d*(e[-+]?\d+)?", re.IGNORECASE), "#"),
    (re.compile(r"\b(inf|nan|-inf)\b"), "#"),
    (re.compile(r"# ?(ms|s|min|h|days?|hours?|minutes?|seconds?)\b"), "# time"),
    (re.compile(r"# ?([kMGT]i?B|bytes|B)\b"), "# bytes"),
    (re.compile(r"[-─━═]{3,}"), "---"),  # rules are as wide as the numbers under them
)


@dataclass
class Step:
    """One command of a walk.

    command: as it is typed, with `^C TEXT`.
    comments: lines above it.
    lines: what it printed, stdout and stderr as a terminal shows them.
    """

    command: str
    comments: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "".join(f"{line}\n" for line in (*self.comments, COMMAND + self.command, *self.lines))


def read_transcript(path: Path) -> list[Step]:
    """The steps of a walk."""
    steps: list[Step] = []
    above: list[str] = []  # comments, and empty lines around them
    for line in path.read_text().splitlines():
        if line.startswith(COMMAND):
            steps.append(Step(line.removeprefix(COMMAND), above))
            above = []
        elif line.startswith(COMMENT) and not above and steps:
            while steps[-1].lines and not steps[-1].lines[-1]:
                above.append(steps[-1].lines.pop())
            above.append(line)
        elif above or not steps:
            above.append(line)
        else:
            steps[-1].lines.append(line)
    return steps


def run_step(command: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """What the command prints, line by line, with its exit code where that is not 0. No shell is run."""
    typed, _, interrupt_after = command.partition(INTERRUPT)
    process = subprocess.Popen(
        shlex.split(typed), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    with process:
        for line in process.stdout:
            if interrupt_after and interrupt_after in line:
                process.send_signal(signal.SIGINT)
                interrupt_after = ""
            if not PROGRESS.search(line):
                lines.append(line.rstrip().replace(str(folder), "~"))
    assert not interrupt_after, f"{command}: the text never came"
    while lines and not lines[-1]:  # in a transcript an empty line stands above a comment
        lines.pop()
    return [*lines, *([f"[exit {process.returncode}]"] if process.returncode else [])]


def environment_of_a_user() -> dict[str, str]:
    """That of this process, with the environment's commands first, and a terminal of 80 columns."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    settled = {"PATH": path, "COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **settled}


def masked(lines: list[str]) -> list[str]:
    """The words, without what differs from machine to machine: numbers, times, and where their width breaks lines."""
    text = "\n".join(lines)
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    return text.split()
