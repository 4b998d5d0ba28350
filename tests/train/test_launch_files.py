"""The launch files of configs/accelerate, run on CPU processes of this machine.

`python -m train` is stops_on_signal.py here: what is tested is how processes are started, signalled and ended. SLURM
cannot run here: srun and scontrol are stand-ins that start real processes with SLURM's variables.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs" / "accelerate"
EVERY = "3"  # steps between two looks for a signal
processes = runpy.run_path(str(Path(__file__).with_name("processes.py")))
started, pid_of = processes["started"], processes["pid_of"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which `-m train` is the stand-in."""
    (tmp_path / "train").mkdir()
    for name in ("__init__.py", "preempt.py"):
        shutil.copy(ROOT / "train" / name, tmp_path / "train" / name)
    shutil.copy(Path(__file__).with_name("stops_on_signal.py"), tmp_path / "train" / "__main__.py")
    (tmp_path / "run").mkdir()
    return tmp_path


@contextmanager
def launched(checkout: Path, *command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`command`, followed by the arguments of the stand-in, with the stand-ins of SLURM ahead of all programs."""
    variables["PATH"] = os.pathsep.join([str(checkout), str(Path(sys.executable).parent), os.environ["PATH"]])
    # Not the path of this process: the checkout, in whose root it runs, would hide the stand-in.
    with started([*command, "run", EVERY], checkout, PYTHONPATH="", ACCELERATE_USE_CPU="true", **variables) as process:
        yield process


def reasons(checkout: Path) -> dict[str, str]:
    """What each rank heard, by the name of its file."""
    return {path.name: json.loads(path.read_text())["reason"] for path in (checkout / "run").glob("heard_*")}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


SRUN = """#!/usr/bin/env python3
import os, subprocess, sys
command = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
command = sys.argv[sys.argv.index(command[0]):]
tasks = [
    subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
sys.exit(max(task.wait() for task in tasks))  # the highest code, as the manual says
"""
SCONTROL = """#!/bin/sh
case $1 in
    show) echo 127.0.0.1 ;;
    requeue) echo "$2" >> requeued ;;
esac
"""


@pytest.mark.parametrize("end", ["time_limit", "crash"])
def test_slurm_queues_again_what_saved_and_nothing_else(checkout: Path, end: str) -> None:
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        (checkout / name).write_text(program)
        (checkout / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}
    with launched(checkout, "bash", str(CONFIGS / "slurm_requeue.sh"), **job) as process:
        pids = [pid_of(process, checkout / "run", rank) for rank in (0, 1)]
        if end == "time_limit":
            for pid in pids:
                os.kill(pid, signal.SIGUSR1)
        else:
            os.kill(pids[1], signal.SIGABRT)  # rank 0 then fails, too: its peer is gone
        process.communicate()
    if end == "time_limit":
        assert process.returncode == 85
        assert reasons(checkout) == {"heard_0": "SIGUSR1", "heard_1": "SIGUSR1"}
        assert (checkout / "requeued").read_text() == "4711\n"
    else:
        assert process.returncode not in (0, 85)
        assert not (checkout / "requeued").exists()


@pytest.mark.slow
def test_one_machine(checkout: Path) -> None:
    options = ["--config_file", str(CONFIGS / "one_machine.yaml"), "--num_processes", "2"]
    with launched(checkout, "accelerate", "launch", *options, "-m", "train") as process:
        pid_of(process, checkout / "run", 0)
        os.kill(pid_of(process, checkout / "run", 1), signal.SIGTERM)
        process.communicate()
    assert reasons(checkout) == {"heard_0": "SIGTERM", "heard_1": "SIGTERM"}
    assert process.returncode == 1


@pytest.mark.slow
def test_two_machines(checkout: Path) -> None:
    """Both on this one: what the file says of ranks, address and port is what makes them meet."""
    options = ["--config_file", str(CONFIGS / "two_machines.yaml"), "--num_processes", "2"]
    options += ["--main_process_port", str(free_port())]
    command = ["accelerate", "launch", *options]
    with (
        launched(checkout, *command, "--machine_rank", "0", "-m", "train") as first,
        launched(checkout, *command, "--machine_rank", "1", "-m", "train") as second,
    ):
        pid_of(first, checkout / "run", 0)
        os.kill(pid_of(second, checkout / "run", 1), signal.SIGUSR1)
        first.communicate()
        second.communicate()
    assert reasons(checkout) == {"heard_0": "SIGUSR1", "heard_1": "SIGUSR1"}


@pytest.mark.slow
def test_elastic_starts_again_after_a_kill_and_saves_on_a_signal(checkout: Path) -> None:
    script, head = str(CONFIGS / "torchrun_elastic.sh"), f"localhost:{free_port()}"
    with launched(checkout, script, NPROC="2", HEAD=head) as process:
        first, killed = (pid_of(process, checkout / "run", rank) for rank in (0, 1))
        os.kill(killed, signal.SIGKILL)
        pid_of(process, checkout / "run", 0, other_than=first)
        pid_of(process, checkout / "run", 1, other_than=killed)
        process.send_signal(signal.SIGUSR1)
        process.communicate()
    assert reasons(checkout) == {"heard_0": "SIGUSR1", "heard_1": "SIGUSR1"}
    assert process.returncode == 1


@pytest.mark.parametrize("name", ["one_machine.yaml", "two_machines.yaml"])
def test_processes_are_counted_over_all_machines(name: str) -> None:
    config = yaml.safe_load((CONFIGS / name).read_text())
    assert config["num_processes"] == 8 * config["num_machines"]
    assert config["mixed_precision"] == "no"  # unquoted, YAML 1.1 reads it as false
