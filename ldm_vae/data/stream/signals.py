"""What a DataLoader worker does about signals."""

from __future__ import annotations

import os
import signal
import threading


def outlive_signals(worker: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: the worker lives on while the trainer answers a signal with a save.

    Schedulers signal every process of a job, and a terminal its whole group. torch's workers die of SIGTERM, and the
    trainer of them, before it has saved. Only the trainer's own SIGTERM counts here: it ends the workers with it, and
    waits for ever where they ignore it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for this thread and those to come; left to the next
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
