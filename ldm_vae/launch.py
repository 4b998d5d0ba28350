"""The `accelerate launch` that started this process, and what a person told it.

What they typed is in its command line, and what they exported in its environment: both are read from /proc.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_vae.errors import UserError


@dataclass(frozen=True)
class Launch:
    """The `accelerate launch` that started this process.

    options: its options; None where nobody typed one.
    environment: its environment, before it set anything.
    """

    options: argparse.Namespace
    environment: Mapping[str, str]


def find_launch(process: int) -> Launch | None:
    """The `accelerate launch` that is this process or its nearest ancestor; None where there is none to be seen."""
    try:
        while process > 1:
            folder = Path("/proc", str(process))
            arguments = _arguments(_strings(folder / "cmdline"))
            if arguments is not None:
                variables = (entry.partition("=") for entry in _strings(folder / "environ"))
                from accelerate.commands.launch import launch_command_parser  # it loads torch

                options, _ = launch_command_parser().parse_known_args(arguments)
                return Launch(options, {name: value for name, _, value in variables})
            parent = re.search(r"^PPid:\s*(\d+)", (folder / "status").read_text(), re.MULTILINE)
            process = int(parent[1]) if parent else 0
    except OSError:  # another user's process, one that has ended, or a system without /proc
        pass
    return None


def is_set(variable: str) -> bool:
    """Whether a variable of accelerate says yes, in any of the words that accelerate knows."""
    return os.environ.get(variable, "").lower() in ("1", "true", "t", "yes", "y", "on")


def refuse_one_for_several(processes: int, device: str) -> None:
    """Raises UserError where the launcher was told to start several processes and has started one.

    processes: number of processes that work together.
    device: what they compute on, "cpu" or "cuda".
    """
    launch = find_launch(os.getppid())
    if launch is None or processes > 1:
        return
    typed = launch.options.num_processes or 1
    # Where its configuration file asks for several, it gives the one that it starts an address to meet at, and no rank.
    given = os.environ.keys() - launch.environment.keys()
    if typed > 1 or ("MASTER_ADDR" in given and "RANK" not in given):
        asked = f"--num_processes {typed}" if typed > 1 else "several processes"
        options = launch.options
        words = [*(["-m"] if options.module else []), options.training_script, *options.training_script_args]
        raise UserError(
            f"accelerate launch is told {asked} and has started one",
            how_to_launch(device, str(typed) if typed > 1 else "N", words),
        )


def how_to_launch(device: str, processes: str, words: Sequence[str] = ("-m", "train", "RECIPE")) -> str:
    """The remedy where processes are too few.

    words: what is launched, and its arguments.
    """
    if device != "cpu":
        return "add --multi_gpu, with at most one process for each GPU, or ask for one process"
    command = f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {processes} {shlex.join(words)}"
    return f"for {processes} processes on a CPU, {command}"


def _arguments(words: Sequence[str]) -> Sequence[str] | None:
    """The arguments of `accelerate launch` in a command line; None where it is another command."""
    names = [Path(word).name for word in words]
    for i, name in enumerate(names):
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return words[i + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and names[i + 1 : i + 2] == ["launch"]:
            return words[i + 2 :]
    return None


def _strings(path: Path) -> list[str]:
    """The strings of a file of /proc, each of which a null byte ends."""
    return [os.fsdecode(entry) for entry in path.read_bytes().split(b"\0")[:-1]]
