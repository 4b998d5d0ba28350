"""The launch files of configs/accelerate, run on CPU processes of this machine.

`python -m train` is stops_on_signal.py here: what is tested is how processes are started, signalled and ended. SLURM
cannot run here: srun and scontrol are stand-ins that start real processes with SLURM's variables.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs" / "accelerate"
EVERY = "3"  # steps between two looks for a signal


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which `-m train` is the stand-in."""
    (tmp_path / "train").mkdir()
    for name in ("__init__.py", "preempt.py"):
        shutil.copy(ROOT / "train" / name, tmp_path / "train" / name)
    shutil.copy(Path(__file__).with_name("stops_on_signal.py"), tmp_path / "train" / "__main__.py")
    (tmp_path / "run").mkdir()
    return tmp_path


def start(checkout: Path, command: Sequence[str], **variables: str) -> subprocess.Popen[bytes]:
    programs = os.pathsep.join([str(checkout), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [*command, "run", EVERY],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": programs, "ACCELERATE_USE_CPU": "true", **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def pid_of(checkout: Path, rank: int, other_than: int = 0) -> int:
    path = checkout / "run" / f"pid_{rank}"
    for _ in range(3000):
        if path.exists() and (pid := int(path.read_text())) != other_than:
            return pid
        time.sleep(0.02)
    raise AssertionError(f"rank {rank} did not start within a minute")


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
    job = {"SLURM_JOB_ID": str(free_port() - 20000), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}
    job["SLURM_JOB_ID"] = str(int(job["SLURM_JOB_ID"]) % 20000)
    process = start(checkout, ["bash", str(CONFIGS / "slurm_requeue.sh")], **job)
    pids = [pid_of(checkout, rank) for rank in (0, 1)]
    if end == "time_limit":
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
    else:
        os.kill(pids[1], signal.SIGABRT)  # rank 0 then fails, too: its peer is gone
    process.communicate()
    if end == "time_limit":
        assert process.returncode == 85
        assert reasons(checkout) == {"heard_0": "SIGUSR1", "heard_1": "SIGUSR1"}
        assert (checkout / "requeued").read_text() == job["SLURM_JOB_ID"] + "\n"
    else:
        assert process.returncode not in (0, 85)
        assert not (checkout / "requeued").exists()


@pytest.mark.slow
def test_one_machine(checkout: Path) -> None:
    config = str(CONFIGS / "one_machine.yaml")
    process = start(checkout, ["accelerate", "launch", "--config_file", config, "--num_processes", "2", "-m", "train"])
    pid_of(checkout, 0)
    os.kill(pid_of(checkout, 1), signal.SIGTERM)
    process.communicate()
    assert reasons(checkout) == {"heard_0": "SIGTERM", "heard_1": "SIGTERM"}
    assert process.returncode == 1


@pytest.mark.slow
def test_two_machines(checkout: Path) -> None:
    """Both on this one: what the file says of ranks, address and port is what makes them meet."""
    config = str(CONFIGS / "two_machines.yaml")
    shared = ["--config_file", config, "--num_processes", "2", "--main_process_port", str(free_port()), "-m", "train"]
    machines = [start(checkout, ["accelerate", "launch", "--machine_rank", rank, *shared]) for rank in ("0", "1")]
    pid_of(checkout, 0)
    os.kill(pid_of(checkout, 1), signal.SIGUSR1)
    for machine in machines:
        machine.communicate()
    assert reasons(checkout) == {"heard_0": "SIGUSR1", "heard_1": "SIGUSR1"}


@pytest.mark.slow
def test_elastic_starts_again_after_a_kill_and_saves_on_a_signal(checkout: Path) -> None:
    process = start(checkout, [str(CONFIGS / "torchrun_elastic.sh")], NPROC="2")
    first, killed = pid_of(checkout, 0), pid_of(checkout, 1)
    os.kill(killed, signal.SIGKILL)
    pid_of(checkout, 0, other_than=first)
    pid_of(checkout, 1, other_than=killed)
    process.send_signal(signal.SIGUSR1)
    process.communicate()
    assert reasons(checkout) == {"heard_0": "SIGUSR1", "heard_1": "SIGUSR1"}
    assert process.returncode == 1


@pytest.mark.parametrize("name", ["one_machine.yaml", "two_machines.yaml"])
def test_processes_are_counted_over_all_machines(name: str) -> None:
    config = yaml.safe_load((CONFIGS / name).read_text())
    assert config["num_processes"] == 8 * config["num_machines"]
    assert config["mixed_precision"] == "no"  # unquoted, YAML 1.1 reads it as false
