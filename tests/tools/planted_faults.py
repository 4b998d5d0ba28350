"""Run by test_every_call.py, in a process with the preloaded library: jobs that treat errors wrongly, and a right one.

    python planted_faults.py ROOT

Prints {name of the job: what the harness found wrong, in the order of the calls that failed}.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from ldm_vae.atomic import atomic_file
from ldm_vae.ending import told_in_a_line
from tools.every_call import Harness, disturb, faults_of, undisturbed
from tools.every_call_jobs import Job

TEXT = "what was there before\n"


def right() -> None:
    with told_in_a_line("ldm-vae"):
        text = Path("input").read_text()
        with atomic_file(Path("result")) as stage:
            stage.write_text(text * 2)
        print(len(text))


def swallows() -> None:
    with told_in_a_line("ldm-vae"):
        text = ""
        with suppress(OSError):
            text = Path("input").read_text()
        with atomic_file(Path("result")) as stage:
            stage.write_text(text * 2)


def overwrites() -> None:
    with told_in_a_line("ldm-vae"):
        text = Path("input").read_text()
        Path("result").write_text(text * 2)


def shows_a_traceback() -> None:
    with atomic_file(Path("result")) as stage:
        stage.write_text(Path("input").read_text() * 2)


def keeps_half() -> None:
    with told_in_a_line("ldm-vae"):
        if not Path("result").exists():
            with Path("result").open("w", buffering=1) as file:
                file.write("one\n")
                file.write("two\n")


JOBS = {
    "right": (right, ("input", "result")),
    "swallows": (swallows, ("input",)),
    "overwrites": (overwrites, ("input", "result")),
    "shows_a_traceback": (shows_a_traceback, ("input",)),
    "keeps_half": (keeps_half, ()),
}


def main(root: Path) -> None:
    harness = Harness(root, lambda job: JOBS[job.name][0]())
    for name in ("input", "result"):
        (harness.material / name).write_text(TEXT)
    found = {}
    for name, (_, needs) in JOBS.items():
        job = Job(name, (), needs)
        known = undisturbed(harness, job)
        found[name] = [disturb(harness, job, known, fault)[1] for fault in faults_of(known) if fault.error == "EIO"]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
