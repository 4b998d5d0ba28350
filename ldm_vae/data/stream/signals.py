"""How a DataLoader worker handles signals: it ignores those that mean the trainer."""

from __future__ import annotations

import os
import signal
import threading


def outlive_signals(worker: int) -> None:
    """Keeps a worker alive until the trainer ends it; pass this to `DataLoader(worker_init_fn=...)`.

    A scheduler sends SIGTERM or SIGUSR1 to every process of a job, and Ctrl-C reaches every process in a terminal. A
    worker of torch would die of it, and torch then stops the trainer before it has saved a checkpoint. So a worker
    ignores these signals, with one exception: a SIGTERM that the trainer itself sends. That is how torch ends its
    workers, and it waits for ever for one that does not obey.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in this and later threads; the one below waits for it
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """Ends the process on a SIGTERM of its parent, the trainer, and drops those of other processes."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
