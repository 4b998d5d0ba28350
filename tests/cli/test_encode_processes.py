"""`ldm-vae encode` in several processes at once: sharing the work, killed, in each other's way."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from filelock import FileLock

from ldm_vae import LatentDataset
from ldm_vae.latents.folder import lock_path
from tests.cli.commands import command, digests
from tests.cli.conftest import write_shard
from tests.cli.encode_processes import finish, start
from tests.conftest import ROOT

SHARDS, SAMPLES = 6, 8


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    for number in range(SHARDS):
        sizes = [(64, 48), (33, 70), (48, 64)]
        write_shard(folder / f"{number:06d}.tar", [f"{number}-{i}" for i in range(SAMPLES)], sizes=sizes)
    return folder


def assert_each_once(out: Path) -> None:
    """Every key of `many` in the tars, as plain webdataset reads them, and in the records."""
    shards = [str(path) for path in sorted(out.glob("*.tar"))]
    found = Counter(sample["__key__"] for sample in webdataset.WebDataset(shards, shardshuffle=False))
    expected = {f"{number}-{i}" for number in range(SHARDS) for i in range(SAMPLES)}
    assert found == Counter(expected)
    dataset = LatentDataset(out)
    assert Counter(dataset.key(i) for i in range(len(dataset))) == found


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_at_the_same_moment_write_what_one_process_writes(
    run: Path, many: Path, tmp_path: Path, world: int
) -> None:
    assert finish([run, many, tmp_path / "one"], 1) == [0]
    assert finish([run, many, tmp_path / "several"], world) == [0] * world
    assert digests(tmp_path / "several") == digests(tmp_path / "one")
    assert_each_once(tmp_path / "several")


@pytest.mark.parametrize("seed", [0, 4, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 11))])
def test_killed_at_random_moments_and_rerun_on_other_numbers_of_processes_gives_the_same_bytes(
    run: Path, many: Path, tmp_path: Path, seed: int, injected: Callable[[str, int], None]
) -> None:
    assert finish([run, many, tmp_path / "calm"], 1) == [0]
    out, random = tmp_path / "out", np.random.default_rng(seed)
    killed = 0
    while len(list(out.glob("*.tar"))) < SHARDS or killed < 3:
        if len(list(out.glob("records/*.json"))) == SHARDS:  # it got through too soon, and would do nothing any more
            shutil.rmtree(out)
        moment = len(list(out.rglob("*"))) + random.integers(1, 9)  # files, whatever they are
        processes = start([run, many, out], int(random.integers(1, 4)))
        while any(process.is_alive() for process in processes) and len(list(out.rglob("*"))) < moment:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.01))
        for process in processes:
            if random.random() < 0.8:  # else it goes on to its end
                process.kill()
        for process in processes:
            process.join()
            assert process.exitcode in (0, -9), f"seed {seed}"
            killed += process.exitcode == -9
    print(f"seed {seed}: {killed} processes killed")
    errors, world = tmp_path / "errors", int(random.integers(1, 4))
    assert finish([run, many, out], world, errors) == [0] * world, errors.read_text()
    assert digests(out) == digests(tmp_path / "calm"), f"seed {seed}"
    assert_each_once(out)
    injected("SIGKILL of `ldm-vae encode` at a random moment, on 1 to 3 processes", killed)


def test_second_command_at_the_same_shard_says_so_and_spoils_nothing(run: Path, shards: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "out", tmp_path / "errors"
    (out / "records").mkdir(parents=True)
    with FileLock(lock_path(out, "000001.tar")):  # as if another process were at it
        assert finish([run, shards, out], 1, errors) == [2]
        error = errors.read_text()
        assert "another process is writing" in error and "000001.tar" in error
        assert error.strip().count("\n") == 0
        assert [path.name for path in out.glob("*.tar")] == ["000000.tar"]
    assert command("encode", run, shards, out) == 0
    assert command("encode", run, shards, tmp_path / "calm") == 0
    assert digests(out) == digests(tmp_path / "calm")


def test_a_killed_command_locks_nobody_out(run: Path, shards: Path, tmp_path: Path) -> None:
    """Its children may outlive it by a moment, and its shard is written by the next one at once."""
    assert finish([run, shards, tmp_path / "calm"], 1) == [0]
    out = tmp_path / "out"
    [process] = start([run, shards, out], 1)
    while not lock_path(out, "000000.tar").exists():  # in mid-shard
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert finish([run, shards, out], 1) == [0]
    assert digests(out) == digests(tmp_path / "calm")


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOLCK])
def test_a_lock_that_fails_is_told_as_a_fault_of_the_disk_and_one_that_does_not_exist_is_done_without(
    run: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: int,
) -> None:
    assert command("encode", run, shards, tmp_path / "calm") == 0
    out = tmp_path / "out"

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(fcntl, "flock", flock)
    capfd.readouterr()
    if fault == errno.EIO:
        assert command("encode", run, shards, out) == 2
        error = capfd.readouterr().err.strip()
        assert "Input/output error" in error and str(tmp_path) in error and "another process" not in error
        assert not list(tmp_path.rglob(".tmp-*"))
        return
    (out / "records").mkdir(parents=True)
    mark = out / "records" / ".000001.tar.lock.held"
    mark.write_text("00000000-1-00000000-0 2026-01-01 00:00:00 UTC")  # of a process elsewhere, which may live
    assert command("encode", run, shards, out) == 2
    error = capfd.readouterr().err
    assert f"the lock {mark} is held since 2026-01-01 00:00:00 UTC" in error and f"remove {mark}" in error
    mark.unlink()
    assert command("encode", run, shards, out) == 0
    assert digests(out) == digests(tmp_path / "calm")


def test_commands_with_other_options_at_the_same_moment_leave_one_of_the_two(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    """Both see an empty folder; the first to lock it says what it is for, and the other is refused."""
    options: tuple[list[str], ...] = ([], ["--mirrored"])
    calm = []
    for number, extra in enumerate(options):
        assert finish([run, shards, tmp_path / f"calm{number}", *extra], 1) == [0]
        calm.append(digests(tmp_path / f"calm{number}"))
    errors = tmp_path / "errors"
    processes = [start([run, shards, tmp_path / "out", *extra], 1, errors)[0] for extra in options]
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert set(codes) == {0, 2}
    assert "holds latents made with mirrored" in errors.read_text()
    assert digests(tmp_path / "out") == calm[codes.index(0)]


def test_shards_of_the_same_names_in_one_folder_at_the_same_moment_are_told(
    run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one command runs, another finishes a shard of the same name, of other images."""
    from ldm_vae.latents import encode

    other = tmp_path / "other"
    write_shard(other / "000000.tar", [f"other{i}" for i in range(40)])
    write = encode._write_latent_shard

    def overtaken(folder: Path, name: str, *rest: Any) -> Any:
        if name == "000001.tar":
            assert finish([run, other, folder], 1) == [2]  # it finds latents of other pictures
        return write(folder, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "_write_latent_shard", overtaken)
        assert command("encode", run, shards, tmp_path / "out") == 0
    assert LatentDataset(tmp_path / "out").key(0) == "a"

    def disturbed(folder: Path, name: str, *rest: Any) -> Any:
        if name == "000001.tar":
            (folder / "000000.tar").unlink()
        return write(folder, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "_write_latent_shard", disturbed)
        assert command("encode", run, shards, tmp_path / "out2") == 2
    assert "000000.tar is no longer what was written there" in capfd.readouterr().err
    assert command("encode", run, shards, tmp_path / "out2") == 0
    assert digests(tmp_path / "out2") == digests(tmp_path / "out")


ONE_MACHINE = str(ROOT / "configs" / "accelerate" / "one_machine.yaml")
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate launch": [
        *("accelerate.commands.launch", "--config_file", ONE_MACHINE),
        *("--num_processes", "2", "--main_process_port", "0"),  # 0: any port
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_ranks_that_write_what_one_process_writes(
    run: Path, many: Path, tmp_path: Path, launcher: str
) -> None:
    assert finish([run, many, tmp_path / "one"], 1) == [0]
    launch = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "ldm_vae", "encode"]
    arguments = [str(path) for path in (run, many, tmp_path / "two")]
    done = subprocess.run(
        [*launch, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("48 latents in 6 tars") == 1
    assert all(f"process {rank} of 2: encoded 24 images" in done.stdout for rank in range(2))
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
