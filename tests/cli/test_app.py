"""The command line as a process sees it: exit codes, one line on stderr, help without torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from ldm_vae.cli import app
from ldm_vae.errors import UserError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ldm_vae", *arguments], capture_output=True, text=True)


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in app.COMMANDS)


def test_options_and_values_keep_their_former_spelling() -> None:
    """`encode --dtype bfloat16` and `evaluate --precision bf16` of 0.1.0 are taken; nothing else is."""
    for command, options in (("encode", "--dtype bf16"), ("evaluate", "--precision fp32")):
        done = run(command, "no-such-model", "no-such-shards", *["out"] * (command == "encode"), *options.split())
        assert done.returncode == 2
        assert "no-such-model" in done.stderr and "option" not in done.stderr.lower(), done.stderr
    refused = run("encode", "no-such-model", "no-such-shards", "out", "--dtype", "float16")
    assert refused.returncode == 2
    assert "'float32', 'bfloat16'" in " ".join(refused.stderr.split())
    assert "dtype" not in run("encode", "--help").stdout


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
