"""How a command ends where the system fails: one line, exit code 2, and no output is lost in silence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import save_file

from ldm_vae.ending import told_in_a_line
from ldm_vae.errors import UserError
from ldm_vae.system import reading, system_error
from ldm_vae.tensors import read_tensors
from tests.conftest import ROOT


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("a recipe", "mend it"), "a recipe: mend it"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "there/x"), "there/x: Input/output error: "),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), "x: No space left on device: make room there"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"), "x: Too many open files: allow more open files"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), "x"), "x: No such file or directory: something removes"),
        (MemoryError(), "too little memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "too little memory"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device: make room"),
    ],
)
def test_an_error_of_the_system_is_one_line_and_exit_code_2(
    error: BaseException, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, told_in_a_line("program"):
        raising(error)()
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("program: ") and printed.count("\n") == 1
    assert said in printed


@pytest.mark.parametrize(
    "error", [ValueError("(5)"), RuntimeError("shape (5)"), AssertionError(), OSError("no number")]
)
def test_other_errors_keep_their_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)), told_in_a_line("program"):
        raising(error)()


def test_output_that_cannot_be_written_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ldm_vae", "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def without_reader(words: list[str], *, stderr: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs Python with a stdout, and maybe a stderr, that no one reads."""
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    try:
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=writing_end,
            stderr=writing_end if stderr else subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    finally:
        os.close(writing_end)


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "ldm_vae", "--version"],  # typer sees it
        ["-m", "ldm_vae", "check", "--help"],  # rich does
        ["-m", "train", "--version"],
        ["-m", "train", "--fields"],
        ["-c", "from ldm_vae.ending import *\nwith told_in_a_line('x'): print('x')"],  # Python does, at the end
    ],
)
def test_output_that_no_one_reads_ends_a_command_without_a_word(words: list[str]) -> None:
    done = without_reader(words)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_error_that_no_one_reads_keeps_its_exit_code() -> None:
    assert without_reader(["-m", "ldm_vae", "check", "no such shards"], stderr=True).returncode == 2


def test_a_command_needs_no_stdout() -> None:
    """As Python does not, where the shell closes it."""
    command = [sys.executable, "-m", "ldm_vae", "--version"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("by_typer", [False, True])
def test_a_broken_pipe_of_anything_else_is_told(by_typer: bool, capfd: pytest.CaptureFixture[str]) -> None:
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lambda: os.write(writing_end, b"x"))
    with pytest.raises(SystemExit) as stop, told_in_a_line("program"):
        app([]) if by_typer else os.write(writing_end, b"x")
    os.close(writing_end)
    assert stop.value.code == 2
    assert "Broken pipe" in (said := capfd.readouterr().err) and said.count("\n") == 1


def test_an_error_names_the_file_that_was_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as raised, reading(tmp_path / "x"):
        raise OSError(errno.EIO, "Input/output error")
    assert raised.value.filename == str(tmp_path / "x")


def test_torch_and_safetensors_say_the_number_in_their_text() -> None:
    safetensors = OSError("Input/output error (os error 5)")
    pytorch = RuntimeError("unable to stat the file <x>: Input/output error (5)")
    for error in (safetensors, pytorch):
        found = system_error(error, Path("x"))
        assert isinstance(found, OSError) and (found.errno, found.filename) == (errno.EIO, "x")


def test_a_file_that_cannot_be_opened_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors takes every file that it cannot open for one that is missing."""
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(OSError, match="cannot be opened now") as raised, reading(path):
        raise FileNotFoundError(f"No such file or directory: {path}")
    assert raised.value.errno == errno.EIO and not isinstance(raised.value, FileNotFoundError)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_tensors(path)
