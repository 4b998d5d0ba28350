"""The versions that a bug report needs: those that are installed, and the command for those that are not."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import tomllib

import pytest
import torch

from ldm_vae import versions
from tests.conftest import ROOT


@pytest.mark.parametrize("module", ["ldm_vae", "train"])
def test_both_commands_name_them(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    first, second, *others = done.stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert first == f"ldm-vae {project['version']}"
    assert second == f"Python {platform.python_version()}"
    assert f"torch {torch.__version__.partition('+')[0]}" in [line.partition("+")[0] for line in others]
    assert {"diffusers", "accelerate", "lpips", "webdataset", "torchmetrics"} <= {line.split()[0] for line in others}


def test_what_is_missing_is_told_with_the_command_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.9.0"}

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(versions, "version", version)
    lines = list(versions.versions_in_words())
    assert lines[0] == "ldm-vae is not installed: this is its source"
    assert "torch 2.9.0" in lines
    assert "diffusers is not installed" in lines
    assert lines.count('scipy is not installed: pip install "ldm-vae[metrics]"') == 1  # though two extras have it


def test_the_packages_of_the_base_are_dependencies() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    named = {one.split(">")[0].split("[")[0].lower() for one in dependencies}
    assert set(versions.BASE) <= named
