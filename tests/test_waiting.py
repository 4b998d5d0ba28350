"""How threads wait: chosen by the load of the machine, before torch is loaded, and never against a person's choice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ldm_vae.waiting as waiting
from tests.conftest import ROOT

PLAIN = {name: value for name, value in os.environ.items() if name not in waiting.POLICY_VARIABLES}
PLAIN["CUDA_VISIBLE_DEVICES"] = ""
# The real command in a process whose machine has a load that the test chooses; libgomp tells what it has understood.
COMMAND = """
import os, pathlib, runpy, sys
sys.path.insert(0, "")
import ldm_vae.waiting
ldm_vae.waiting.LOAD = pathlib.Path({counted!r})
os.getloadavg = lambda: ({load}, 0.0, 0.0)
os.sched_getaffinity = lambda process: set(range(2))
sys.argv = {argv}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def spins(module: str, argv: list[str], load: float, **exported: str) -> int:
    """How often the threads of a command look before they sleep, as the library that runs them says."""
    code = COMMAND.format(load=load, argv=[module, *argv], module=module, counted="no such file")
    environment = {**PLAIN, "OMP_DISPLAY_ENV": "VERBOSE", **exported}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if found is None:
        pytest.skip("this torch runs its threads with another library than libgomp")
    return int(found[1])


COMMANDS = {
    "ldm_vae": ["evaluate", "--help"],
    "train": ["no_such_recipe.yaml"],
    "tools.demo": ["--help"],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_waits_passively_where_others_keep_the_cores_busy(module: str) -> None:
    assert spins(module, COMMANDS[module], load=2.0) == 0


def test_a_command_that_has_the_machine_alone_spins() -> None:
    assert spins("train", COMMANDS["train"], load=0.1) > 0


def test_what_a_person_has_set_stays() -> None:
    assert spins("ldm_vae", COMMANDS["ldm_vae"], load=99.0, GOMP_SPINCOUNT="1000") == 1000


def chosen(monkeypatch: pytest.MonkeyPatch, load: float, cores: float, counted: Path | None = None) -> str | None:
    """What `choose_waiting` puts into the environment, in a process that has no torch yet."""
    monkeypatch.setattr(waiting, "LOAD", counted or Path("no such file"))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in waiting.POLICY_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(waiting, "usable_cores", lambda: cores)
    waiting.choose_waiting()
    return os.environ.get("OMP_WAIT_POLICY")


@pytest.mark.parametrize("name", waiting.POLICY_VARIABLES)
def test_each_way_to_say_how_threads_wait_counts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(waiting, "LOAD", Path("no such file"))
    for other in waiting.POLICY_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "0")
    before = dict(os.environ)
    waiting.choose_waiting()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("load", "cores", "expected"), [(0.9, 2.0, None), (1.0, 2.0, "PASSIVE"), (1.0, 64.0, None), (1.0, 0.5, "PASSIVE")]
)
def test_the_load_counts_beside_the_cores(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: float, expected: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen(monkeypatch, load, cores) == expected


@pytest.mark.parametrize(("running", "expected"), [(1, None), (2, "PASSIVE"), (7, "PASSIVE")])
def test_the_load_of_a_job_that_has_ended_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, running: int, expected: str | None
) -> None:
    """The average of a minute remembers it; who wants to run now, beside this process, is counted too."""
    (tmp_path / "loadavg").write_text(f"9.00 9.00 9.00 {running}/531 4242\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen(monkeypatch, load=9.0, cores=2.0, counted=tmp_path / "loadavg") == expected


def test_a_process_that_computes_is_seen(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        found = waiting.running_now()
        other.kill()
    if not waiting.LOAD.exists():
        pytest.skip("this system does not count them")
    assert 1 <= found < float("inf")


def test_a_gpu_that_does_the_work_leaves_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(waiting, "GPUS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert chosen(monkeypatch, load=99.0, cores=2.0) is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert chosen(monkeypatch, load=99.0, cores=2.0) == "PASSIVE"


def test_where_torch_is_loaded_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So commands that are called as functions leave the process as it is, and so does an import."""
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    import torch

    assert "torch" in sys.modules and torch is not None
    waiting.choose_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ
    code = "import os; before = dict(os.environ); import ldm_vae, ldm_vae.waiting; assert os.environ == before"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=PLAIN)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, 3.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"cpu.max": "nonsense"}, 3.0),
        ({}, 3.0),
    ],
)
def test_cores_are_those_of_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], cores: float
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(waiting, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert waiting.usable_cores() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert waiting.cores_of_process() == 1  # of 1.5 cores each, and where there are fewer than processes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert waiting.cores_of_process() == max(1, int(cores))


def test_ranks_of_a_launcher_choose_for_themselves(recipe: Path) -> None:
    """Two under torchrun, in a machine whose load every Python reads as high."""
    code = "import os; os.getloadavg = lambda: (99.0, 99.0, 99.0)"
    (recipe.parent / "sitecustomize.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **PLAIN,
        "PYTHONPATH": str(recipe.parent),
        "OMP_DISPLAY_ENV": "VERBOSE",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [*launch, "-m", "train", str(recipe), "steps=1"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("GOMP_SPINCOUNT = '0'") == 2  # of the ranks; the launcher itself chooses nothing
    assert "2 processes" in done.stderr
