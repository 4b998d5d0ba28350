"""Run by test_preempt.py, alone or under torchrun: steps of 20 ms until a signal, then a file that says what was heard.

python stops_on_signal.py FOLDER
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from train.preempt import PREEMPTED, Interrupted, Preemption

folder = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
if "RANK" in os.environ:
    # Rank 0 comes last, so that the others meet it, or what an earlier start of it has left behind.
    time.sleep(0 if rank else 1)
    dist.init_process_group("gloo")
    atexit.register(dist.destroy_process_group)  # without it gloo's threads may abort a finished process
with Preemption() as preemption:
    preemption.hold()
    (folder / f"pid_{rank}.tmp").write_text(str(os.getpid()))
    (folder / f"pid_{rank}.tmp").replace(folder / f"pid_{rank}")
    taken = 0
    with suppress(Interrupted):
        while True:
            time.sleep(0.02)
            taken += 1
            preemption.wait_for(lambda seconds: True)
    heard = {"reason": preemption.reason, "taken": taken, "received": preemption.received}
    time.sleep(0.5)  # the save; a repeated signal arrives within it
    (folder / f"heard_{rank}").write_text(json.dumps(heard))
sys.exit(PREEMPTED)
