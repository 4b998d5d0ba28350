"""`ldm-vae train` is the trainer where there is a checkout, and says how to get one where there is none."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from email.message import Message
from pathlib import Path

import pytest

from ldm_vae.cli import train
from tests.conftest import ROOT, write_shards
from train.preempt import PREEMPTED

ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true"}


def start(folder: Path, package: Path, *arguments: str) -> subprocess.Popen[str]:
    """`ldm-vae train ARGUMENT...` in a folder, with the package from another one."""
    return subprocess.Popen(
        [sys.executable, "-m", "ldm_vae", "train", *arguments],
        cwd=folder, env={**ENVIRONMENT, "PYTHONPATH": str(package)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that holds the package alone, as an installed wheel does."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "ldm_vae").symlink_to(ROOT / "ldm_vae")
    return folder


def test_without_a_checkout_one_line_says_how_to_get_it(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "train").mkdir()  # a folder of images, say
    process = start(tmp_path, installed, "configs/kl_f8_c4.yaml")
    out, told = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert told.count("\n") == 1 and "clone" in told and "there is none here" in told


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ([], "clone the repository"),
        (["Changelog, https://a.example/log"], "clone the repository"),
        (["Homepage, https://a.example", "Repository, https://b.example/x.git"], "git clone https://b.example/x.git"),
    ],
)
def test_the_command_comes_from_the_metadata(monkeypatch: pytest.MonkeyPatch, urls: list[str], expected: str) -> None:
    described = Message()
    for url in urls:
        described["Project-URL"] = url
    monkeypatch.setattr(train, "metadata", lambda name: described)
    assert train.clone_command() == expected


def test_a_package_without_metadata_is_cloned_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> Message:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(train, "metadata", nothing)
    assert train.clone_command() == "clone the repository"


def test_help_is_the_trainers_own(tmp_path: Path, installed: Path) -> None:
    """In the checkout with an installed package, and elsewhere with the checkout's package."""
    direct = subprocess.run([sys.executable, "-m", "train", "--help"], cwd=ROOT, capture_output=True, text=True)
    for folder, package in ((ROOT, installed), (tmp_path, ROOT)):
        process = start(folder, package, "--help")
        assert process.communicate()[0] == direct.stdout != ""
        assert process.returncode == 0


def test_a_signal_and_exit_codes_are_the_trainers(tmp_path: Path, recipe: Path) -> None:
    """The process that was started is the trainer: a signal to it saves the run, and its code says so."""
    (tmp_path / "train.py").write_text("raise SystemExit('this is no trainer')\n")
    shards = write_shards(tmp_path / "images", [8])
    data = (f"data.train={shards}", "data.validation=null")
    settings = (*data, "steps=100000", "log.every=1", "checkpoint.every=100000", f"output={tmp_path / 'run'}")
    process = start(tmp_path, ROOT, str(recipe), *settings)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, told
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "preempted"
    mistyped = start(tmp_path, ROOT, str(recipe), "data.trian=x")
    assert "did you mean 'data.train'?" in mistyped.communicate()[1]
    assert mistyped.returncode == 2
