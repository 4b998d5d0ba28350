"""Which errors are faults of the machine, and how the commands tell them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from ldm_vae.cli import app
from ldm_vae.errors import UserError
from ldm_vae.machine import FAULTS, fault_of_machine, out_of_memory
from tests.cli.commands import command
from tests.conftest import ROOT


def test_torch_says_that_there_is_no_memory_in_a_runtime_error() -> None:
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**50)
    assert out_of_memory(refusal.value)
    # As cuBLAS and cuDNN say it, where not even their own state has room.
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"))


def test_causes_count() -> None:
    error = ValueError("of a library")
    assert not out_of_memory(error)
    error.__cause__ = MemoryError()
    assert out_of_memory(error)
    assert out_of_memory(OSError(errno.ENOMEM, "no memory")) and not out_of_memory(OSError("out of memory? no errno"))


@pytest.mark.parametrize("code", FAULTS)
def test_faults_have_a_line_and_bugs_a_traceback(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(asked: str | None) -> None:
        raise OSError(code, os.strerror(code), "file")

    monkeypatch.setattr(app, "build_app", broken)
    assert command("check") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and (os.strerror(code) in said or "too little memory" in said)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), RuntimeError("a bug"), OSError("a bug")])
def test_other_errors_pass(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(asked: str | None) -> None:
        raise error

    assert fault_of_machine(error) is None
    monkeypatch.setattr(app, "build_app", broken)
    with pytest.raises(type(error)):
        app.main(["check"])


def test_a_library_that_cannot_be_loaded_for_want_of_open_files() -> None:
    fault = fault_of_machine(ImportError(f"libx.so: cannot open shared object file: {os.strerror(errno.EMFILE)}"))
    assert isinstance(fault, UserError)
    assert fault_of_machine(ImportError("No module named 'x'")) is None


def test_decoders_are_loaded_before_the_first_picture() -> None:
    """Pillow takes a plugin whose file cannot be opened for a kind of picture that it does not know."""
    code = "import sys, ldm_vae.data.images.decode; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    kinds = ("Jpeg", "Mpo", "Png", "Tiff", "WebP")
    assert {f"PIL.{kind}ImagePlugin" for kind in kinds} <= set(loaded.stdout.split())
