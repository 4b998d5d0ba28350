"""The command line as a process sees it: exit codes, one line on stderr, help without torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ldm_vae.cli import app
from ldm_vae.errors import UserError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ldm_vae", *arguments], capture_output=True, text=True)


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in app.COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [("encode", "out", "--dtype", "bf16"), ("encode", "out", "--dtype=bfloat16"), ("evaluate", "--precision=fp32")],
)
def test_options_and_values_of_0_1_0_are_taken(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *others = arguments
    with pytest.raises(SystemExit) as stop:
        app.main([command, str(tmp_path / "no-model"), "no-shards", *others])
    assert stop.value.code == 2
    assert "no-model" in capsys.readouterr().err  # so the options were understood


def test_no_other_spelling_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        app.main(["encode", "no-model", "no-shards", "out", "--dtype", "float16"])
    assert stop.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "'float32', 'bfloat16'" in told and "--precision" in told  # the option is called as it is now
    with pytest.raises(SystemExit):
        app.main(["encode", "--help"])
    assert "dtype" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in app.COMMANDS if name != "train"])
def test_help_page_says_what_the_command_says_of_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = getattr(import_module(f"ldm_vae.cli.{name}"), name)
    said = inspect.getdoc(function)
    assert said is not None and said.splitlines()[0] == app.COMMANDS[name]
    with pytest.raises(SystemExit) as stop:
        app.main([name, "--help"])
    assert stop.value.code == 0
    assert app.COMMANDS[name] in " ".join(capsys.readouterr().out.split())


def test_user_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(asked: str | None) -> None:
        raise UserError("shards/ holds no tar", "make some with `ldm-vae shards`")

    monkeypatch.setattr(app, "build_app", broken)
    with pytest.raises(SystemExit) as stop:
        app.main(["stats"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "ldm-vae: shards/ holds no tar: make some with `ldm-vae shards`\n"


def test_unknown_command_is_named() -> None:
    done = run("evalute")
    assert done.returncode == 2
    assert "evalute" in done.stderr
    assert "Traceback" not in done.stderr
