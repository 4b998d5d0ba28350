"""Measures how waiting threads slow a training step on a machine that has other work: spinning, and passive waiting.

    python -m tools.bench_waiting --others 0 --others 2 --others 8

Every step runs in a process of its own, with as many threads as there are cores, beside so many others that do nothing
but take a core. The policies take turns; the ratio is taken within a round, so other work does not decide it.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
from typing import Annotated

import typer

from ldm_vae.waiting import POLICY_VARIABLES, usable_cores
from tools.command import run_command

STEPS, BATCH, SIDE = 4, 4, 64  # steps that are timed after one that is not, pictures in each, pixels
STEP = f"""
import time, torch
from ldm_vae.interop.load import build_network
from ldm_vae.networks.kl import AutoencoderConfig
from ldm_vae.noise import SlotNoise
torch.manual_seed(0)
model = build_network(AutoencoderConfig(block_out_channels=(32, 64, 64), layers_per_block=1, norm_groups=8))
image = torch.rand({BATCH}, 3, {SIDE}, {SIDE}) * 2 - 1
for step in range({STEPS} + 1):
    if step == 1:
        start = time.perf_counter()
    (model(image, noise=SlotNoise(0, step, torch.arange({BATCH}))).reconstruction - image).abs().mean().backward()
print((time.perf_counter() - start) / {STEPS})
"""


def bench_waiting(
    others: Annotated[
        list[int] | None, typer.Option(help="processes that take a core, a row each [0, 1, 2, 8]")
    ] = None,
    rounds: Annotated[int, typer.Option(help="runs per policy and row; medians are printed")] = 3,
) -> None:
    """Measure a training step with threads that spin and with threads that wait passively."""
    print(f"{usable_cores():g} usable cores; load before: {os.getloadavg()[0]:.1f}\n")
    print("| other processes | load | s/step spinning | s/step passive | passive / spinning |\n|---|---|---|---|---|")
    for count in others or (0, 1, 2, 8):
        spinners = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
        for spinner in spinners:
            spinner.start()
        pairs = [(_seconds(passive=False), _seconds(passive=True)) for _ in range(rounds)]
        load = os.getloadavg()[0]
        for spinner in spinners:
            spinner.terminate()
            spinner.join()
        spinning, passive = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(passive / spinning for spinning, passive in pairs)
        print(f"| {count} | {load:.1f} | {spinning:.2f} | {passive:.2f} | {ratio:.2f} |", flush=True)


def _spin() -> None:
    while True:
        pass


def _seconds(passive: bool) -> float:
    """Seconds of a step in a fresh process, since the policy is read as torch is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in POLICY_VARIABLES}
    environment["OMP_NUM_THREADS"] = str(max(1, round(usable_cores())))
    if passive:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    run_command(bench_waiting)
