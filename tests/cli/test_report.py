"""`ldm-vae report` as a process: where it writes, what it refuses, and what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldm_vae.cli.app import main


def report(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:  # typer's way to end
        main(["report", *arguments])
    assert stop.value.code == 0


def test_it_writes_into_the_run_and_tells_where(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(str(run))
    assert capsys.readouterr().out == f"{run}/report.html\n"
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>") and f"ldm-vae report {run}" in page
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "recipe.yaml", "report.html"]


def test_output_says_where(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(str(run), "--output", str(tmp_path / "new" / "a.html"))
    page = (tmp_path / "new" / "a.html").read_text()
    assert len(page) > 10_000 and f"ldm-vae report {run} --output {tmp_path / 'new' / 'a.html'}" in page
    assert not (run / "report.html").exists()


def test_a_folder_is_no_file_to_write(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), "--output", str(tmp_path)])
    assert stop.value.code == 2


def test_what_is_no_run_exits_with_2_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"ldm-vae: {tmp_path} is no run: give a folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_its_packages_it_names_the_command(run: Path, package: str) -> None:
    """In a process where the package cannot be imported."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; from ldm_vae.cli.app import main; main(['report', {str(run)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith(f'{package} is not installed: pip install "ldm-vae[report]"')
    assert not (run / "report.html").exists()
