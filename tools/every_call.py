"""Lets every call of a small job of each command fail, one after the other, as SQLite's tests do.

    python -m tools.reliability --every-call

First each job of `every_call_jobs.py` runs undisturbed, and its calls of libc about its files are counted. Then it runs
once for each of them: that call fails, with EIO, ENOSPC, ENOMEM or EMFILE where such a call can; alone, or with all
later ones. Memory runs out in steps, too. Each run is a child that is forked after the imports. A run is right if

- it ends with exit code 0, and its output and all its files are those of the undisturbed run; or
- it ends with another code and one line on stderr, and all files that were there before are unchanged, or whole and
  those of the undisturbed run;
- and in both cases a second, undisturbed run in the same place leaves what an undisturbed run leaves, and nothing else.

What this cannot see: a page of a mapped file that cannot be read (the system sends SIGBUS), a call that is made without
libc, seeking, sockets, processes that a job starts, and a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ldm_vae.atomic import REPLACED
from ldm_vae.data.shards import retry
from tools.every_call_jobs import CACHE, LOGS, Job, prepare, steady
from tools.faults import MEETS, Fault, Faults

LONGEST = 120  # seconds after which a run counts as one that hangs
MEMORY = "memory"  # in place of an error's name: memory runs out
MEMORY_STEPS = 16  # limits between what a process has after the imports, and what it has at most in the end
KILLED = {-signal.SIGALRM: f"it hangs, {LONGEST} s"}
UNDISTURBED = Fault("EIO", 0, False)
Tree = Mapping[str, str]  # path of a file -> digest


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    code: the exit code; negative after a signal.
    failed: calls that failed, and the first of them.
    calls: calls that could have failed, by error.
    memory: bytes of address space that were added at most.
    modules: what it imported.
    """

    code: int
    output: bytes
    errors: str
    failed: int
    what: str
    calls: Mapping[str, int]
    memory: int
    modules: Sequence[str]


class Harness:
    """Runs jobs in one folder, each in a child process.

    root: an empty folder. The jobs run in `root/job`, because what they write may hold paths.
    """

    def __init__(self, root: Path, call: Callable[[Job], None]) -> None:
        self.root, self.folder, self.material = root.resolve(), root.resolve() / "job", root.resolve() / "material"
        self.call = call
        self.faults = Faults()
        self.faults.share()
        retry.LONGEST_WAIT = 0.0  # what fails for good fails at once
        self.material.mkdir()

    def prepare(self) -> None:
        """Makes what the jobs need, and imports what they import."""
        self.folder.mkdir()
        prepare(self.folder, self.run_well, self._keep)

    def run_well(self, job: Job) -> None:
        """Runs a job undisturbed, and imports what it imports, so that later children need not."""
        ended = self.run(job, UNDISTURBED)
        if ended.code != 0:
            raise RuntimeError(f"{job.words} ends with {ended.code}: {ended.errors}")
        for name in ended.modules:
            with suppress(ImportError):
                import_module(name)

    def _keep(self, name: str) -> None:
        source, target = self.folder / name, self.material / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)

    def lay_out(self, job: Job) -> None:
        """Puts into the folder what the job needs, and nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name in job.needs:
            source, target = self.material / name, self.folder / name
            copy = os.link if name == CACHE else shutil.copy2  # it is large, and nobody changes a file in it
            shutil.copytree(source, target, copy_function=copy) if source.is_dir() else copy(source, target)

    def run(self, job: Job, fault: Fault, memory: int | None = None) -> Ended:
        """Runs a job in the folder as it is.

        memory: bytes of address space that may be added.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            try:
                self._become(job, fault, memory)
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
        notes: dict[str, Any] = {"memory": 0, "modules": []}
        with suppress(OSError, ValueError):
            notes = json.loads((self.root / f"notes-{child}").read_text())
        (self.root / f"notes-{child}").unlink(missing_ok=True)
        failed, what = self.faults.failed()
        return Ended(
            code=os.waitstatus_to_exitcode(status),
            output=steady((self.root / "stdout").read_bytes()),
            errors=(self.root / "stderr").read_text(errors="replace"),
            failed=failed,
            what=what.replace(f"{self.folder}/", ""),
            calls=self.faults.calls(),
            **notes,
        )

    def _become(self, job: Job, fault: Fault, memory: int | None) -> None:
        """The child: runs the job as a process of its own would, and ends."""
        signal.alarm(LONGEST)
        os.chdir(self.folder)
        os.environ["LDM_VAE_CACHE"] = str(self.folder / CACHE)
        for number, name in ((1, "stdout"), (2, "stderr")):
            descriptor = os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        before, size = set(sys.modules), _address_space("VmSize")
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
        self.faults.arm(self.folder, fault)
        code = 0
        try:
            self.call(job)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            code = 1
            traceback.print_exc()
        try:  # as Python does when it ends
            sys.stdout.flush()
        except OSError:
            code = 120
            traceback.print_exc()
        self.faults.disarm()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        notes = {"memory": _address_space("VmPeak") - size, "modules": sorted(set(sys.modules) - before)}
        (self.root / f"notes-{os.getpid()}").write_text(json.dumps(notes))
        os._exit(code)

    def tree(self) -> Tree:
        """The files in the folder, but for the cache."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_symlink():
                found[name] = f"to {path.readlink()}"
            elif path.is_file() and not name.startswith(f"{CACHE}/"):
                found[name] = hashlib.sha256(steady(path.read_bytes())).hexdigest()
        return found


@dataclass(frozen=True)
class Undisturbed:
    """What is right for a job: its first run, and another one after it.

    before, after: the files.
    """

    before: Tree
    first: Ended
    after: Tree
    second: Ended


def undisturbed(harness: Harness, job: Job) -> Undisturbed:
    """Runs the job twice from the start, to know what it does, and once more after that."""
    harness.lay_out(job)
    before = harness.tree()
    harness.run_well(job)
    once = harness.tree()
    harness.lay_out(job)
    first = harness.run(job, UNDISTURBED)
    after = harness.tree()
    if different := sorted(name for name, _ in once.items() ^ after.items()):
        raise RuntimeError(f"two undisturbed runs of {job.name} differ in {different[0]}")
    return Undisturbed(before, first, after, harness.run(job, UNDISTURBED))


def faults_of(right: Undisturbed) -> Iterator[Fault]:
    """All that may happen to a job."""
    for error in MEETS:
        for for_good in (False, True):
            for call in range(1, right.first.calls[error] + 1):
                yield Fault(error, call, for_good)
    for step in range(MEMORY_STEPS):
        yield Fault(MEMORY, step, True)


def disturb(harness: Harness, job: Job, right: Undisturbed, fault: Fault) -> tuple[Ended, list[str]]:
    """Runs the job with a fault, and again without. Returns how the first run ended, and what was wrong."""
    harness.lay_out(job)
    if fault.error == MEMORY:
        ended = harness.run(job, UNDISTURBED, right.first.memory * fault.call // MEMORY_STEPS)
    else:
        ended = harness.run(job, fault)
    left = harness.tree()
    wrong = []
    if ended.code == 0:
        if _whole(left) != right.after or ended.output != right.first.output:
            wrong.append("less")
    else:
        if ended.code < 0:
            wrong.append("killed")
        elif not _is_one_line(ended.errors):
            wrong.append("no line")
        kept = {name: digest for name, digest in right.before.items() if name not in LOGS}
        if any(left.get(name) not in (digest, right.after.get(name)) for name, digest in kept.items()):
            wrong.append("lost")
    if left == right.before:
        return ended, wrong  # the second run is the undisturbed one
    again = harness.run(job, UNDISTURBED)
    # A summary may say how much was there already; its first line says what there is in the end.
    done = again.code == 0 and again.output.partition(b"\n")[0] in {
        ended.output.partition(b"\n")[0] for ended in (right.first, right.second)
    }
    refused = again.code == right.second.code != 0 and left == right.after  # it was done before
    if harness.tree() != right.after or not (done or refused):
        wrong.append("rerun")
    return ended, wrong


def _whole(tree: Tree) -> Tree:
    """Without what the next writer removes."""
    return {
        name: digest
        for name, digest in tree.items()
        if not any(part.startswith((".tmp-", REPLACED)) for part in Path(name).parts)
    }


def _is_one_line(errors: str) -> bool:
    """Whether the last line says how the command ended, or a box says what is wrong with the command line."""
    lines = errors.strip().splitlines()
    told = bool(lines) and lines[-1].startswith(("ldm-vae: ", "train: "))
    return "Traceback" not in errors and (told or "Usage: " in errors)


def _address_space(name: str) -> int:
    """VmSize or VmPeak of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(errno.ENOSYS, "/proc/self/status lacks", name)
