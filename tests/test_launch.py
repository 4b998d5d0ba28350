"""The launcher of a process, found among its ancestors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ldm_vae.launch import find_launch
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "command",
    [
        ["/somewhere/bin/accelerate", "launch"],
        ["/somewhere/bin/accelerate-launch"],
        ["-m", "accelerate.commands.launch"],
        ["-m", "accelerate.commands.accelerate_cli", "launch"],
    ],
)
def test_the_launcher_is_found_above_what_it_started(command: list[str]) -> None:
    """A process with the launcher's command line, and a child of it that only waits."""
    wait = "import sys; print('ready', flush=True); sys.stdin.read()"
    start = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {wait!r}]).pid, flush=True)"
    typed = ["--num-processes", "3", "--mixed_precision=bf16", "-m", "train", "recipe.yaml", "--num_processes=5"]
    with subprocess.Popen(
        [sys.executable, "-c", f"{start}; sys.stdin.read()", *command, *typed],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "EXPORTED": "by a person"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        launch = find_launch(int(process.stdout.readline()))
        process.communicate("")
    assert launch is not None
    assert launch.environment["EXPORTED"] == "by a person"
    assert (launch.options.num_processes, launch.options.mixed_precision) == (3, "bf16")
    assert launch.options.gradient_accumulation_steps is None


def test_no_launcher_is_found_where_there_is_none() -> None:
    assert find_launch(os.getpid()) is None
    assert find_launch(2**22) is None  # no process has this number


@pytest.mark.parametrize("command", ["encode", "evaluate", "stats"])
def test_commands_that_share_their_work_refuse_to_be_one_for_several(command: str) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "ldm_vae"]
    rest = [command, "run", "shards", *(["out"] if command == "encode" else [])]
    done = subprocess.run([*launch, *rest], cwd=ROOT, capture_output=True, text=True)
    said = "accelerate launch is told --num_processes 2 and has started one: for 2 processes on a CPU, "
    right = f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m ldm_vae {' '.join(rest)}"
    assert f"ldm-vae: {said}{right}\n" in done.stderr
    assert "returned non-zero exit status 2" in done.stderr
