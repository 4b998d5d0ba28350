"""Real signals to real processes, alone and under torchrun."""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from train import preempt
from train.preempt import PREEMPTED, SIGNALS, Interrupted, Preempted, Preemption

SCRIPT = Path(__file__).with_name("stops_on_signal.py")
processes = runpy.run_path(str(SCRIPT.with_name("processes.py")))
started, pid_of = processes["started"], processes["pid_of"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def heard(folder: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"heard_{rank}").read_text()))


def is_told(preemption: Preemption) -> bool:
    try:
        preemption.wait_for(lambda seconds: True)
    except Interrupted:
        return True
    return False


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with Preemption() as preemption:
        preemption.hold()
        assert not is_told(preemption)
        os.kill(os.getpid(), number)
        assert is_told(preemption)
        os.kill(os.getpid(), SIGNALS[0])
        assert is_told(preemption)
        assert preemption.reason == number.name  # the first one is the reason
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_signal_before_the_first_step_ends_the_run_once() -> None:
    with Preemption() as preemption:
        with pytest.raises(Preempted, match="SIGUSR1 before the first step"):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # as it ends; a launcher and a scheduler may both send one
        assert preemption.received == signal.SIGUSR1


def test_a_signal_ends_a_wait_for_what_never_comes() -> None:
    looks = 0

    def arrived(seconds: float) -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    with Preemption() as preemption:
        preemption.hold()
        with pytest.raises(Interrupted, match="SIGTERM"):
            preemption.wait_for(arrived)
    assert looks == 3


@pytest.fixture
def pythons_own_handler() -> Iterator[None]:
    """That of Ctrl-C; a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_handler")
def test_a_second_ctrl_c_quits_at_once_but_an_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with Preemption() as preemption:
        preemption.hold()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)  # one key press, heard from the terminal and from launchers
        assert is_told(preemption)
        monkeypatch.setattr(preempt, "ECHO", 0.01)
        time.sleep(0.05)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # Python's own handler is back
        signal.raise_signal(signal.SIGINT)


def test_a_worker_ends_with_the_documented_code(tmp_path: Path) -> None:
    with started([sys.executable, SCRIPT, "."], tmp_path) as process:
        os.kill(pid_of(process, tmp_path, 0), signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == PREEMPTED == 85
    assert heard(tmp_path, 0)["reason"] == "SIGTERM"
    assert errors == "train: stopping after this step, then saving (SIGTERM)\n"


@pytest.mark.usefixtures("pythons_own_handler")
def test_where_the_run_stops_is_said_once_and_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Preemption() as preemption:
        preemption.hold()
        with preemption.during("within this validation"):
            signal.raise_signal(signal.SIGINT)
            said = capfd.readouterr().err  # before anybody has looked for a signal
            signal.raise_signal(signal.SIGTERM)
        assert is_told(preemption)
    assert said == "train: stopping within this validation, then saving (Ctrl-C again: without)\n"
    assert capfd.readouterr().err == ""


def test_a_signal_within_a_write_to_stderr_is_answered(capfd: pytest.CaptureFixture[str]) -> None:
    """Python refuses to enter the buffer of a stream again that it is just writing; a handler must not do so."""

    class Interrupting(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            signal.raise_signal(signal.SIGTERM)
            return len(data)

    with pytest.MonkeyPatch.context() as patch, Preemption() as preemption:
        preemption.hold()
        patch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupting()), write_through=True))
        print("a line", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "train: stopping after this step, then saving (SIGTERM)\n"


def test_other_ranks_say_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Preemption() as preemption:
        preemption.hold()
        signal.raise_signal(signal.SIGTERM)
        assert is_told(preemption)
    assert capfd.readouterr().err == ""


def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path) -> None:
    with started([*TORCHRUN, SCRIPT, "."], tmp_path) as process:
        pid_of(process, tmp_path, 0)
        os.kill(pid_of(process, tmp_path, 1), signal.SIGUSR1)
        _, errors = process.communicate()
    first, second = heard(tmp_path, 0), heard(tmp_path, 1)
    assert (first["received"], second["received"]) == (0, signal.SIGUSR1)  # rank 0 heard of it from rank 1 alone
    assert first["reason"] == second["reason"] == "SIGUSR1"
    assert first["taken"] == second["taken"]
    assert errors.count("train: stopping after this step, then saving (SIGUSR1)") == 1  # by rank 0, which got none
    assert process.returncode == 1, "launchers turn every code into 1, as the documentation says"
    assert "exitcode  : 85" in errors


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ctrl_c", "launcher_alone"])
def test_a_signal_to_torchrun_lets_the_workers_save(tmp_path: Path, case: str) -> None:
    with started([*TORCHRUN, SCRIPT, "."], tmp_path) as process:
        pid_of(process, tmp_path, 0)
        pid_of(process, tmp_path, 1)
        if case == "ctrl_c":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        process.communicate()
    reason = "SIGINT" if case == "ctrl_c" else "SIGTERM"
    assert {heard(tmp_path, rank)["reason"] for rank in (0, 1)} == {reason}
