"""Memory does not grow with the number of samples and shards that have been read."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

SHARDS, PER_SHARD, WARM, WORKERS = 2000, 100, 10_000, 2

STREAM = """
import itertools, json, os, sys
from pathlib import Path
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import DataConfig, train_batches

def peaks():  # bytes, of this process and of each of its workers
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    status = [Path(f"/proc/{process}/status").read_text() for process in ("self", *children)]
    return [int(text.split("VmHWM:")[1].split()[0]) * 1024 for text in status]

folder, workers, samples, warm, batch = sys.argv[1], *map(int, sys.argv[2:6])
config = DataConfig(train=folder, batch=batch, workers=workers, image=ImageConfig(channels=1))
batches = train_batches(config, load_index(folder), 0, start_step=0, rank=0, world=1, accumulation=1)
seen, early = set(), None
for (found,) in itertools.islice(batches, samples // batch):
    seen.update(hash(key) for key in found.key)
    if early is None and len(seen) >= warm:
        seen_size = sys.getsizeof(seen)
        early = peaks()
growth = sys.getsizeof(seen) - seen_size  # what this test itself keeps
print(json.dumps({"early": early, "late": peaks(), "seen": len(seen), "growth": growth, "reads": batches.reads}))
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    """200,000 tiny samples in 2,000 shards, each read once: the peaks of the trainer and of its workers are within 10 %
    of those after the first 10,000."""
    content = np.lib.format.MAGIC_PREFIX + b"\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2), }"
    content = content.ljust(127) + b"\n" + bytes(4)
    for shard in range(SHARDS):
        with (tmp_path / f"{shard:06d}.tar").open("wb") as file:
            for number in range(PER_SHARD):
                info = tarfile.TarInfo(f"{shard * PER_SHARD + number:07d}.npy")
                info.size = len(content)
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0"))
            file.write(bytes(1024))
    command = [sys.executable, "-c", STREAM, str(tmp_path), str(WORKERS), str(SHARDS * PER_SHARD), str(WARM), "400"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["seen"] == result["reads"] == SHARDS * PER_SHARD  # all of them were streamed, none twice
    assert len(result["early"]) == len(result["late"]) == 1 + WORKERS
    for early, late in zip(result["early"], result["late"], strict=True):
        assert late - result["growth"] <= 1.1 * early
