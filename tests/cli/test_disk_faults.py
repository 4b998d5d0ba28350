"""A disk, a file server or a limit that fails is no fault of the data, whatever command reads it.

A third of all reads fail: the result is that of an undisturbed run. All fail from the middle of the job on: one line,
an exit code, nothing changed or left out; and the next run gives the undisturbed result.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState

from ldm_vae.data.shards import retry
from ldm_vae.data.shards.left_out import warn_once
from tests.cli.commands import command, digests
from tests.cli.conftest import write_shard
from tests.cli.disk_faults import TRANSIENT, Faults, failing
from tests.conftest import TINY, encoded, picture
from tests.train.runs import rows
from train.__main__ import app

NAMES = {code: errno.errorcode[code] for code in (*TRANSIENT, errno.EACCES)}


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.0)


@dataclass(frozen=True)
class Job:
    """A command that reads.

    arguments: of the command.
    reads: what it reads, where faults are injected.
    result: tells what a finished job left.
    share: of its reads that fail; fewer where many are made as one, and tried again as one.
    """

    arguments: tuple[object, ...]
    reads: tuple[Path, ...]
    result: Callable[[], Any]
    share: float = 1 / 3

    def run(self) -> int:
        warn_once.cache_clear()
        if self.arguments[0] != "train":
            return command(*self.arguments)
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        with pytest.raises(SystemExit) as stop:
            app([str(argument) for argument in self.arguments[1:]])
        return int(stop.value.code or 0)


MakeJob = Callable[[str], Job]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    write_shard(folder / "000000.tar", list("abcdef"))
    write_shard(folder / "000001.tar", list("ghijk"))
    return folder


@pytest.fixture
def make_job(run: Path, shards: Path, tmp_path: Path) -> MakeJob:
    """make_job(command): the job, in `tmp_path`, of which the command has not run yet."""
    out, latents, json = tmp_path / "out", tmp_path / "latents", tmp_path / "found.json"

    def text(path: Path = json) -> bytes:
        return path.read_bytes()

    def make(name: str) -> Job:
        if name in ("decode", "roundtrip", "check latents"):
            assert command("encode", run, shards, latents) == 0
        if name == "check --write-index":
            assert command("check", shards, "--write-index") == 0  # an index that is good
        images = tmp_path / "images" / "cats"
        if name == "shards":
            images.mkdir(parents=True)
            for number in range(6):
                (images / f"{number}.png").write_bytes(encoded(picture(number)))
        crop = ("--crop", "center:12")
        recipe = tmp_path / "recipe.yaml"
        tiny = TINY.format(output=out, shards=tmp_path).replace("crop: 32", "crop: 32, resize: 32")
        recipe.write_text(tiny.replace("/train", "/shards").replace("/validation", "/shards"))
        tars, encoded_tars = ([folder / f"00000{n}.tar" for n in range(2)] for folder in (shards, latents))
        return {
            "encode": Job(("encode", run, shards, out), (shards,), lambda: digests(out)),
            "evaluate": Job(("evaluate", run, shards, "--metrics", "psnr", "--json", json), (shards,), text),
            "stats": Job(("stats", run, shards, "--json", json), (shards,), text),
            "inspect": Job(
                ("inspect", run, shards, "--images", 4, *crop, "--output", out),
                (shards,),
                lambda: digests(out),
            ),
            "decode": Job(("decode", run, latents, out), (latents,), lambda: digests(out)),
            "roundtrip": Job(("roundtrip", run, latents, shards, "--json", json), (shards, latents), text),
            "check": Job(("check", shards, "--decode", "--json", json), (shards,), text),
            "check --write-index": Job(
                ("check", shards, "--write-index"), tuple(tars), lambda: digests(shards)["index.json"]
            ),
            "check latents": Job(
                ("check", latents, "--source", shards, "--json", json), (shards, *encoded_tars), text, share=1 / 8
            ),
            "shards": Job(("shards", images.parent, out), (images.parent,), lambda: digests(out)),
            "train": Job(("train", recipe), (shards,), lambda: rows(out)),
        }[name]

    return make


COMMANDS = (
    *("encode", "evaluate", "stats", "inspect", "decode", "roundtrip", "check", "check --write-index"),
    *("check latents", "shards", "train"),
)
SLOW = ("roundtrip",)  # it loads the networks of three metrics
EVERY = [
    pytest.param(
        name,
        code,
        id=f"{name}-{NAMES[code]}",
        marks=() if code == errno.EIO and name not in SLOW else pytest.mark.slow,
    )
    for name in COMMANDS
    for code in TRANSIENT
]


@pytest.mark.parametrize(("name", "code"), EVERY)
def test_reads_that_fail_change_no_result(
    make_job: MakeJob,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    injected: Callable[[str, int], None],
    name: str,
    code: int,
) -> None:
    job = make_job(name)
    before = digests(tmp_path)
    undisturbed = Faults(code, job.reads, share=0.0)
    with failing(undisturbed):
        assert job.run() == 0
    expected = job.result()
    restore(tmp_path, before)

    stays = Faults(code, job.reads, share=1.0, spared=undisturbed.calls // 2)
    capfd.readouterr()
    with failing(stays):
        assert job.run() == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert os.strerror(code) in said or "too little memory" in said
    assert "remove" not in said and "encode again" not in said
    now = digests(tmp_path)
    assert {path: now.get(path) for path in before} == before
    assert job.run() == 0
    assert job.result() == expected
    restore(tmp_path, before)

    passes = Faults(code, job.reads, job.share)
    with failing(passes):
        assert job.run() == 0
    assert passes.times > 1
    assert job.result() == expected
    injected(f"`{name}`: some reads fail with {NAMES[code]}, then all for good", passes.times + stays.times)


def restore(folder: Path, before: dict[str, str]) -> None:
    """Removes what the job left, so that the next one begins as the first did."""
    for path in digests(folder).keys() - before.keys():
        (folder / path).unlink()
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert digests(folder) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_files_that_may_not_be_read_stop_the_command(
    make_job: MakeJob, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    job = make_job(name)
    before = digests(tmp_path)
    capfd.readouterr()
    with failing(Faults(errno.EACCES, job.reads, share=1.0, spared=4)):
        assert job.run() == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "may not be read (Permission denied): change its rights" in said
    now = digests(tmp_path)
    assert {path: now.get(path) for path in before} == before
