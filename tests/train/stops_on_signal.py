"""Run by test_preempt.py, alone or under torchrun: steps of 20 ms until a signal, then a file that says what was heard.

python stops_on_signal.py FOLDER EVERY
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from train.preempt import PREEMPTED, Preemption

folder, every = Path(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ.get("RANK", "0"))
if "RANK" in os.environ:
    # Rank 0 comes last, so that the others meet it, or what an earlier start of it has left behind.
    time.sleep(0 if rank else 1)
    dist.init_process_group("gloo")
    atexit.register(dist.destroy_process_group)  # without it gloo's threads may abort a finished process
with Preemption(every) as preemption:
    (folder / f"pid_{rank}.tmp").write_text(str(os.getpid()))
    (folder / f"pid_{rank}.tmp").replace(folder / f"pid_{rank}")
    for taken in itertools.count(1):
        time.sleep(0.02)
        if preemption.agreed(taken):
            break
    heard = {"reason": preemption.reason, "taken": taken, "received": preemption.received}
    time.sleep(0.5)  # the save; a repeated signal arrives within it
    (folder / f"heard_{rank}").write_text(json.dumps(heard))
sys.exit(PREEMPTED)
