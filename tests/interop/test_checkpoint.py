"""The checkpoint format: what comes back, what is refused, and what a kill at any point leaves."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import resource
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm_vae.atomic import REPLACED
from ldm_vae.errors import UserError
from ldm_vae.interop import checkpoint as native
from ldm_vae.interop.checkpoint import Checkpoint, find_damage, read_latest

SCRIPT = Path(__file__).with_name("killed_saves.py")
killed_saves = runpy.run_path(str(SCRIPT))
save, content = killed_saves["save"], killed_saves["content"]


def assert_equal_tensors(checkpoint: Checkpoint, expected: dict[str, dict[str, torch.Tensor]]) -> None:
    for group, named in expected.items():
        read = checkpoint.tensors(group)
        assert read.keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(read[name], tensor)
            assert read[name].dtype == tensor.dtype


# --- what comes back --------------------------------------------------------------------------------------------------


def test_round_trip_of_any_layout(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "model": {
            "whole": base,
            "tied": base,
            "transposed": base.t(),
            "row": base[1],
            "column": base[:, 1],
            "expanded": torch.ones(1).expand(5),
            "parameter": torch.nn.Parameter(base),
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        },
        "state": {
            "scalar": torch.tensor(3),
            "empty": torch.zeros(0, 3),
            "empty_too": torch.zeros(0, 3),
            "bfloat16": torch.randn(3).bfloat16(),
            "float64": torch.randn(3, dtype=torch.float64),
            "bool": torch.tensor([True, False]),
            "bytes": torch.get_rng_state(),
        },
        "nothing": {},
    }
    meta = {"step": 7, "model": {"latent_channels": 4}, "metrics": {"psnr": 0.1 + 0.2}, "nested": [1, None, "é"]}
    checkpoint = Checkpoint.write(tmp_path / "checkpoints" / "step_00000007", tensors, meta)
    assert checkpoint.step == 7
    assert checkpoint.meta == {"format": "ldm_vae.checkpoint", "version": 2, **meta}
    assert checkpoint.groups == ("model", "nothing", "state")
    assert find_damage(checkpoint.folder) == []
    assert_equal_tensors(checkpoint, tensors)
    assert Checkpoint.open(checkpoint.folder) == checkpoint
    assert Checkpoint.latest(tmp_path) == checkpoint


def test_only_what_must_be_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.zeros(4, 4)
    named = {"alone": torch.zeros(3), "first": base, "tied": base, "strided": torch.zeros(4, 4).t()}
    received: dict[str, int] = {}

    def spy(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        received.update({name: tensor.data_ptr() for name, tensor in tensors.items()})
        save_file(tensors, *args, **kwargs)

    monkeypatch.setattr(native, "save_file", spy)
    Checkpoint.write(tmp_path / "step_00000001", {"model": named}, {"step": 1, "model": {}})
    kept = {name for name, tensor in named.items() if received[name] == tensor.data_ptr()}
    assert kept == {"alone", "first"}


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint = save(tmp_path, 1, 0)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in checkpoint.folder.iterdir()} == {0o640}


def test_the_manifest_lists_every_other_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, 0).folder
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {(file["name"], file["bytes"]) for file in files} == {
        (path.name, path.stat().st_size) for path in folder.iterdir() if path.name != "manifest.json"
    }
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """Python itself reports each class that any unpickler looks up; a control shows that it would be seen."""
    save(tmp_path, 1, 0)
    program = """
import collections, pathlib, pickle, sys, torch
from ldm_vae.interop.checkpoint import Checkpoint
seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event == "pickle.find_class" else None)
checkpoint = Checkpoint.latest(pathlib.Path(sys.argv[1]))
for group in checkpoint.groups: checkpoint.tensors(group)
assert not seen, seen
pickle.loads(pickle.dumps(collections.OrderedDict()))
assert seen
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_meta_without_step_or_model_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="meta lacks"):
        Checkpoint.write(tmp_path / "step_00000001", {}, {"step": 1})
    assert list(tmp_path.iterdir()) == []


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing is no checkpoint"):
        Checkpoint.open(tmp_path / "missing")
    (tmp_path / "meta.json").write_text('{"format": "another"}')
    with pytest.raises(UserError, match=r"does not say ldm_vae\.checkpoint"):
        Checkpoint.open(tmp_path)
    (tmp_path / "meta.json").write_text("[1")
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        Checkpoint.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": "ldm_vae.checkpoint", "version": 1, "step": "1"}')
    with pytest.raises(UserError, match="damaged"):
        Checkpoint.open(tmp_path)


def test_a_newer_version_is_refused_not_skipped(tmp_path: Path) -> None:
    save(tmp_path, 1, 0)
    meta = {"step": 2, "model": {}, "version": native.CHECKPOINT_VERSION + 1}
    with pytest.raises(UserError, match="version 3, newer than 2: update ldm_vae"):
        Checkpoint.write(tmp_path / "checkpoints" / "step_00000002", {}, meta)
    with pytest.raises(UserError, match="newer"):
        Checkpoint.latest(tmp_path)


def test_a_missing_group_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tensors 'ema': it has model, state"):
        save(tmp_path, 1, 0).tensors("ema")


# --- what damage does -------------------------------------------------------------------------------------------------


def test_latest_skips_what_does_not_verify_with_one_line_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3, 10, 100_000_000):  # a step of nine digits sorts by number
        save(tmp_path, step, 0)
    folders = sorted((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    (folders[4] / "manifest.json").unlink()
    (folders[3] / "state.safetensors").unlink()
    size = (folders[2] / "model.safetensors").stat().st_size
    os.truncate(folders[2] / "model.safetensors", 100)
    (tmp_path / "checkpoints" / "step_final").mkdir()
    with caplog.at_level(logging.WARNING):
        latest = Checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.step == 2
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "manifest.json is missing",
        "state.safetensors is missing",
        f"model.safetensors has 100 bytes, not {size:,}",
    ]
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert Checkpoint.latest(tmp_path) is None
    assert Checkpoint.all(tmp_path) == []


def test_all_leaves_out_what_does_not_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, 0)
    (tmp_path / "checkpoints" / "step_00000002" / "meta.json").unlink()
    assert [checkpoint.step for checkpoint in Checkpoint.all(tmp_path)] == [1, 3]
    assert "step_00000002" in caplog.text
    assert Checkpoint.at(tmp_path, 3).step == 3
    with pytest.raises(UserError, match="no checkpoint of step 2"):
        Checkpoint.at(tmp_path, 2)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "meta.json", "manifest.json"])
def test_no_flipped_bit_and_no_truncation_changes_what_is_read(
    tmp_path: Path, name: str, injected: Callable[[str, int], None]
) -> None:
    """Every byte of the small files, 300 of the large one, one random bit each. A flip that leaves the meaning of
    the manifest alone (in its white space, say) may pass: then what is read must be what was written.
    """
    run, generator = tmp_path, random.Random(0)
    checkpoint = save(run, 1, 0)
    meta, expected = dict(checkpoint.meta), content(1, 0)
    path = checkpoint.folder / name
    good = path.read_bytes()
    found = 0
    positions = range(len(good)) if len(good) <= 1000 else sorted(generator.sample(range(len(good)), 300))
    for position in positions:
        bad = bytearray(good)
        bad[position] ^= 1 << generator.randrange(8)
        path.write_bytes(bad)
        if Checkpoint.latest(run) is None:
            found += 1
        else:
            assert name == "manifest.json"
            assert_equal_tensors(checkpoint, expected)
            assert Checkpoint.open(checkpoint.folder).meta == meta
    assert found == len(positions) if name != "manifest.json" else found > 0.6 * len(positions)
    for length in (*range(0, min(len(good), 1000) - 2, 7), len(good) - 2):  # without its last line feed JSON is whole
        path.write_bytes(good[:length])
        assert Checkpoint.latest(run) is None
    path.unlink()
    assert Checkpoint.latest(run) is None
    injected(f"a bit of {name} of a checkpoint flips", len(positions))


def test_tensors_are_checked_as_they_are_read(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1, 0)
    path = checkpoint.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=r"model.safetensors has changed \(sha256\)"):
        checkpoint.tensors("model")
    assert_equal_tensors(checkpoint, {"state": content(1, 0)["state"]})  # the damage is elsewhere


def test_the_next_one_is_read_where_the_newest_is_deleted_meanwhile(tmp_path: Path) -> None:
    """A running trainer deletes; an error while the checkpoint is there is none of that, and is told."""
    for step in (1, 2):
        save(tmp_path, step, 0)
    seen: list[int] = []

    def read(checkpoint: Checkpoint) -> int:
        seen.append(checkpoint.step)
        if checkpoint.step == 2:
            shutil.rmtree(checkpoint.folder)
        assert_equal_tensors(checkpoint, content(checkpoint.step, 0))
        return checkpoint.step

    assert read_latest(tmp_path, read) == 1 and seen == [2, 1]

    def fails(checkpoint: Checkpoint) -> None:
        raise UserError("its architecture", "train it anew")

    with pytest.raises(UserError, match="its architecture"):
        read_latest(tmp_path, fails)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="has no whole checkpoint: train it until"):
        read_latest(tmp_path, read)


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1, 0)
    manifest = checkpoint.folder / "manifest.json"
    (tmp_path / "checkpoints" / "state.safetensors").write_bytes((checkpoint.folder / "state.safetensors").read_bytes())
    manifest.write_text(manifest.read_text().replace('"state.', '"../state.'))
    assert find_damage(checkpoint.folder) == [
        "state.safetensors is not in the manifest",
        "../state.safetensors is missing",
    ]


# --- what a kill leaves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["new", "replace"])
def test_a_kill_at_every_operation_of_a_save(
    tmp_path: Path, scenario: str, injected: Callable[[str, int], None]
) -> None:
    process = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, scenario],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    operations = int(process.stdout)
    # At least 4 writes, each torn too, 5 flushes before the rename, the rename, the flush of the parent.
    assert operations >= 15
    survivors = []
    for n in range(operations + 1):
        run = tmp_path / str(n)
        latest = Checkpoint.latest(run)
        assert latest is not None, f"nothing is left of a save killed at operation {n}"
        assert find_damage(latest.folder) == []
        saved = latest.meta["saved"]
        assert_equal_tensors(latest, content(latest.step, saved))
        survivors.append((latest.step, saved))

        following = save(run, 2, saved=5)
        assert Checkpoint.latest(run) == following
        assert_equal_tensors(following, content(2, 5))
        left = {path.name for path in (run / "checkpoints").iterdir()}
        assert left <= {"step_00000001", f"{REPLACED}step_00000001", "step_00000002"}, "stages are cleaned up"
        assert len(left) == 2
    # Up to one operation the old one stands, from there on the new one: there is no third state.
    old, new = (1, 0), (2, 0) if scenario == "new" else (1, 1)
    switch = survivors.index(new)
    assert survivors == [old] * switch + [new] * (operations + 1 - switch)
    assert switch >= 13
    injected(f"kill at every write, flush and rename of a save ({scenario} checkpoint)", operations)


SAVE_UNTIL_THE_LIMIT = """
import pathlib, resource, runpy, signal, sys
save = runpy.run_path(sys.argv[1])["save"]
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills in the middle of the write that crosses the limit
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
save(pathlib.Path(sys.argv[2]), 2, 0)
"""


def test_a_kill_by_the_kernel_within_a_write(tmp_path: Path) -> None:
    save(tmp_path, 1, 0)
    process = subprocess.run([sys.executable, "-c", SAVE_UNTIL_THE_LIMIT, SCRIPT, tmp_path, "10000"])
    assert process.returncode == -25  # SIGXFSZ
    latest = Checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.step == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3  # the stage of the dead, and its lock
    assert find_damage(save(tmp_path, 2, 0).folder) == []
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


# --- what a full disk does --------------------------------------------------------------------------------------------


def test_a_refused_write_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """EFBIG, as a quota answers, from inside safetensors; needs no root."""
    previous = save(tmp_path, 1, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"step_00000002: File too large .16,392 bytes needed, .* bytes free"):
            save(tmp_path, 2, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "checkpoints").iterdir()) == [previous.folder]
    assert Checkpoint.latest(tmp_path) == previous


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_keeps_the_previous_checkpoint(small_disk: Path, injected: Callable[[str, int], None]) -> None:
    injected("full disk while saving", 2)
    previous = save(small_disk, 1, 0)
    big = {"model": {"weight": torch.zeros(100_000)}}
    new = small_disk / "checkpoints" / "step_00000002"
    for _ in range(2):
        with pytest.raises(UserError, match=f"{new}: {os.strerror(errno.ENOSPC)}.*400,000 bytes needed"):
            Checkpoint.write(new, big, {"step": 2, "model": {}})
        assert list((small_disk / "checkpoints").iterdir()) == [previous.folder]
        assert Checkpoint.latest(small_disk) == previous
    for step in range(2, 20):  # full by many small ones: the error may come at any of the files
        try:
            previous = save(small_disk, step, 0)
        except UserError:
            break
    else:
        pytest.fail("the disk never filled")
    assert Checkpoint.latest(small_disk) == previous
    assert {path.name[:5] for path in (small_disk / "checkpoints").iterdir()} == {"step_"}
