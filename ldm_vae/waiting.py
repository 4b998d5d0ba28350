"""How PyTorch's threads wait for each other on a CPU: spinning where they have it alone, asleep where they share it.

A thread that spins takes the core on which others would do what it waits for, so that training becomes several times
slower on a busy machine; sleeping costs a tenth or two on an idle one (`python -m tools.bench_waiting`). The library
that runs the threads reads the policy as it is loaded. So a command chooses before it imports torch, and
`import ldm_vae` chooses nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

POLICY_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of them is a person's choice
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, and of either in WSL
CGROUP = Path("/sys/fs/cgroup")
LOAD = Path("/proc/loadavg")  # its fourth word is "wanting to run/all"
LOOKS, BETWEEN = 10, 0.002  # how often that is looked at, and seconds between: who computes wants to run at each look


def choose_waiting() -> None:
    """Makes threads wait passively where other processes keep the cores busy. To be called before torch is imported.

    Changes nothing where a person has chosen, where torch is loaded already, and where a GPU does the work.
    """
    if "torch" in sys.modules or chosen(os.environ) or _has_gpu(os.environ):
        return
    if is_busy(load(minutes=1)) and is_busy(running_now()):  # not where only the load of a job that has ended is left
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def chosen(environment: Mapping[str, str]) -> bool:
    """Whether somebody has said how threads wait."""
    return any(name in environment for name in POLICY_VARIABLES)


def is_busy(load: float) -> bool:
    """Whether so many other processes that want to run would take cores from this one."""
    return load >= usable_cores() / 2


def load(minutes: int) -> float:
    """How many processes wanted to run, on average over the last 1, 5 or 15 minutes; 0 where nobody counts them."""
    try:
        return os.getloadavg()[(1, 5, 15).index(minutes)]
    except (OSError, AttributeError):  # no such number, as on Windows
        return 0.0


def running_now() -> float:
    """How many other threads want to run just now; infinity where nobody counts them."""
    most = 0
    for _ in range(LOOKS):
        try:
            most = max(most, int(LOAD.read_text().split()[3].partition("/")[0]) - 1)  # this one wants to, too
        except (OSError, ValueError, IndexError):
            return float("inf")
        time.sleep(BETWEEN)
    return float(most)


def usable_cores() -> float:
    """How many cores this process may use: by its affinity, and by the quota of its container."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(affinity), *_quotas()])


def cores_of_process() -> int:
    """How many cores each of the processes that a launcher started on this machine may keep busy, at least one."""
    return max(1, int(usable_cores() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _quotas() -> list[float]:
    """The quotas of this process's control groups, in cores; none where there is no limit."""
    found = []
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        try:
            quota, period = " ".join((CGROUP / file).read_text() for file in files).split()
            if quota != "max" and int(quota) > 0:
                found.append(int(quota) / int(period))
        except (OSError, ValueError):  # no such file, or nothing that we know
            continue
    return found


def _has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether there seems to be a GPU to compute on; torch, which would know, is not loaded yet."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    forced = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    return not (hidden or forced) and any(Path(device).exists() for device in GPUS)
