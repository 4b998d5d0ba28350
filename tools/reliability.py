"""Writes docs/reliability.md: which faults were injected, how often, what was lost, and how soon a run is back.

    python -m tools.reliability

runs the tests that inject faults, slow ones too, and then measures.

    python -m tools.reliability --every-call [--only JOB] [--sample K] [--results FILE]

lets every call of every command fail instead (`every_call.py`), which takes hours, and prints what came of it.
"""

from __future__ import annotations

import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ldm_vae.data.images.decode import encode_image
from ldm_vae.data.shards.index import load_index, write_index
from ldm_vae.data.stream.reader import DataConfig, train_batches
from tools import every_call_results

PAGE = Path("docs/reliability.md")
TESTS = (
    "tests/test_live_stages.py",
    "tests/test_locks.py",
    "tests/interop/test_checkpoint.py",
    "tests/data/stream/test_remote.py",
    "tests/data/images/test_no_memory.py",
    "tests/cli/test_memory_limits.py",
    "tests/cli/test_disk_faults.py",
    "tests/data/stream/test_reader.py",
    "tests/train",
)
TARS, SAMPLES_PER_TAR, SIDE, SAMPLES_PER_STEP = 40, 500, 64, 32  # tars, pictures in each, pixels, pictures per step

PAGE_START = """# Reliability
`python -m tools.reliability` writes this page. Each row is a test that injects a fault and compares the outcome with an
undisturbed run, on a CPU: bit for bit on one process, to float64 rounding on several.

| fault | injected | lost | test |
|---|---|---|---|
"""
PAGE_END = """
## How soon a run is back
{samples:,} pictures of {side}x{side} in {shards} local shards with an index, no workers, batches of {batch}, on 2 CPU
cores that had other work, too: only the ratio of the two rows means something.

| from | seconds to the first batch | samples read for it |
|---|---|---|
{rows}
The position in the data is a number, so a resumed run does not read again what it has used. Over HTTP it reads at most
one window of 64 samples per lane (`tests/data/stream/test_remote.py`).

## What ends a command, and with which code
`ldm-vae`, `python -m train` and the tools end with 0 only where everything is done. `ldm-vae check` ends with 1 where
it found something. 2 means not done, and one line on stderr says why: bad input, or a disk, a file server or a memory
that failed. Such a failure is never taken for a missing or damaged file, and what was finished is kept: run it again.
A rank of the trainer that was stopped by SIGTERM, SIGUSR1 or Ctrl-C, and has saved, ends with 85; one whose data
workers failed, with 2.
Launchers turn both into 1, so `status.json` says `preempted` or `failed`, and why.
`configs/accelerate/slurm_requeue.sh` uses no launcher and goes by the exit code.

Elastic torchrun may hang after a restart (seen with PyTorch 2.15), because workers meet through a store that still
holds the addresses of dead workers ([pytorch#135712](https://github.com/pytorch/pytorch/issues/135712)).
`configs/accelerate/torchrun_elastic.sh` prevents this with `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`; your own launch
files should set it, too.
"""


def main() -> int:
    if sys.argv[1:2] == ["--every-call"]:
        return every_call_results.start(sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = pytest.main(["-q", "-k", "not test_recipes", f"--junitxml={report}", *TESTS])
        faults = "".join(fault_rows(report))
        times = "".join(time_rows(Path(folder) / "shards"))
    tail = PAGE_END.format(samples=TARS * SAMPLES_PER_TAR, side=SIDE, shards=TARS, batch=SAMPLES_PER_STEP, rows=times)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(PAGE_START + faults + _every_call() + tail)
    return int(code)


def _every_call() -> str:
    """The section of the page about `--every-call`, whose table a person brings up to date."""
    page = PAGE.read_text()
    start = page.index("\n## Every call\n")
    return page[start : page.index("\n## ", start + 1)]


def fault_rows(report: Path) -> list[str]:
    """A row of the table for each test that injects a fault."""
    rows = []
    for case in ElementTree.parse(report).iter("testcase"):
        noted = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        if "fault" in noted and case.find("skipped") is None:
            lost = "nothing" if case.find("failure") is None and case.find("error") is None else "**failed**"
            name = str(case.get("name")).split("[")[0]
            rows.append(f"| {noted['fault']} | {noted['times']} | {lost} | `{name}` |\n")
    return rows


def time_rows(folder: Path) -> list[str]:
    """Rows of the table of times: to the first batch, from the start and from nine tenths of an epoch."""
    write_shards(folder)
    config = DataConfig.model_validate_json(
        f'{{"train": "{folder}", "batch": {SAMPLES_PER_STEP}, "workers": 0, "image": {{"crop": {SIDE}}}}}'
    )
    index = load_index(str(folder))
    rows = []
    for name, step in (("the start", 0), ("90 % of an epoch", int(0.9 * TARS * SAMPLES_PER_TAR / SAMPLES_PER_STEP))):
        start = time.perf_counter()
        batches = train_batches(config, index, 0, start_step=step, rank=0, world=1, accumulation=1)
        next(batches)
        rows.append(f"| {name} | {time.perf_counter() - start:.3f} | {batches.reads} |\n")
        batches.close()
    return rows


def write_shards(folder: Path) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for shard in range(TARS):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar"), encoder=False) as writer:
            for sample in range(SAMPLES_PER_TAR):
                coarse = generator.uniform(-1, 1, (3, 8, 8)).astype(np.float32)
                picture = encode_image(np.kron(coarse, np.ones((1, SIDE // 8, SIDE // 8), np.float32)), "jpg")
                writer.write({"__key__": f"{shard:06d}_{sample:04d}", "jpg": picture})
    write_index(folder)


if __name__ == "__main__":
    sys.exit(main())
