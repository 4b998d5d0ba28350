"""Run by test_native.py in a process of its own: one save after another, each killed at a later operation.

    python killed_saves.py ROOT SCENARIO

For n = 0, 1, ... makes the run ROOT/n with a checkpoint of step 1, forks, and has the child save step 2 (scenario
`new`) or step 1 again (`replace`), dying without clean-up at its n-th operation on the disk. Ends after the first
child that lives, whose run is then the proof that the operations were counted to the end. Writes and removals are
also torn: the child dies with half of them done. A fork for each, so that torch is imported once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldm_vae.interop import checkpoint as native
from ldm_vae.interop.checkpoint import Checkpoint

KILLED = 137


def content(step: int, saved: int) -> dict[str, dict[str, torch.Tensor]]:
    """saved: counts the saves of one step, so that a replaced checkpoint differs from the old one."""
    value = float(100 * step + saved)
    return {"model": {"weight": torch.full((64, 64), value)}, "state": {"step": torch.tensor(step)}}


def save(run: Path, step: int, saved: int) -> Checkpoint:
    meta = {"step": step, "model": {}, "saved": saved}
    return Checkpoint.write(run / "checkpoints" / f"step_{step:08d}", content(step, saved), meta)


class Killer:
    """Dies at the n-th operation, before it, or in the middle of it where `torn` says how."""

    def __init__(self, n: int) -> None:
        self.left = n

    def point(self) -> bool:
        self.left -= 1
        return self.left == -1

    def wrap(self, owner: Any, name: str, torn: Callable[..., None] | None = None) -> None:
        real = getattr(owner, name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            if self.point():
                os._exit(KILLED)
            if torn is not None and self.point():
                torn(real, *args, **kwargs)
                os._exit(KILLED)
            return real(*args, **kwargs)

        setattr(owner, name, operation)


def half_text(real: Callable[..., Any], path: Path, text: str) -> None:
    real(path, text[: len(text) // 2])


def half_tensors(real: Callable[..., Any], tensors: dict[str, torch.Tensor], path: Path, **kwargs: Any) -> None:
    real(tensors, path, **kwargs)
    os.truncate(path, path.stat().st_size // 2)


def main(root: Path, scenario: str) -> None:
    for n in range(1000):
        run = root / str(n)
        save(run, 1, saved=0)
        child = os.fork()
        if child == 0:
            killer = Killer(n)
            killer.wrap(Path, "write_text", half_text)
            killer.wrap(native, "save_file", half_tensors)
            for name in ("fsync", "replace", "mkdir", "unlink", "rmdir", "chmod"):
                killer.wrap(os, name)
            if scenario == "new":
                save(run, 2, saved=0)
            else:
                save(run, 1, saved=1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            print(n)
            return
        if code != KILLED:
            shutil.rmtree(root)
            raise SystemExit(f"the save killed at operation {n} ended with {code}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
