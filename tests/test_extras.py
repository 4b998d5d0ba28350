"""A package that is not installed is told in a line with the command that installs it; a broken one is not hidden."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from ldm_vae.extras import DISTRIBUTIONS, PACKAGES, Extra, MissingExtra, extra, install_command, is_installed, require
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_DEVELOPERS = {"demo", "test", "lint", "docs", "dev"}  # extras that no command of ours asks for


def name_of(requirement: str) -> str:
    """The distribution that a requirement names."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return found.group()


def installed_by(name: str) -> set[str]:
    """The distributions of an extra in pyproject.toml, with those of the extras that it includes."""
    names = set()
    for requirement in PROJECT["optional-dependencies"][name]:
        if name_of(requirement) == PROJECT["name"]:
            included = requirement.partition("[")[2].rstrip("]").split(",")
            names |= {distribution for other in included for distribution in installed_by(other)}
        else:
            names.add(name_of(requirement))
    return names


@pytest.mark.parametrize("name", get_args(Extra))
def test_the_table_says_what_pyproject_installs(name: Extra) -> None:
    assert {DISTRIBUTIONS.get(package, package.replace("_", "-")) for package in PACKAGES[name]} == installed_by(name)


def test_every_extra_of_users_is_known_and_part_of_all() -> None:
    users = set(PROJECT["optional-dependencies"]) - OF_DEVELOPERS - {"all"}
    assert users == set(PACKAGES) == set(get_args(Extra))
    assert installed_by("all") == set.union(*(installed_by(name) for name in users))


def test_no_package_is_both_in_the_base_and_in_an_extra() -> None:
    base = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    assert not base & installed_by("all")


def test_a_package_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    said = 'ssim: torchmetrics is not installed: pip install "ldm-vae[metrics]"'
    with pytest.raises(MissingExtra, match=re.escape(said)), extra("metrics", "ssim"):
        import_module("torchmetrics")
    with pytest.raises(MissingExtra, match=re.escape(said)):
        require("metrics", "ssim")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=re.escape('tensorboard is not installed: pip install "ldm-vae[train]"')):
        require("train", package="tensorboard")
    require("metrics", package="scipy")  # another package of that extra, which is there


@pytest.mark.parametrize(
    ("imported", "text"),
    [
        ("import surely_missing", "No module named 'surely_missing'"),  # another package, which it needs
        ("from . import part", "cannot import name 'part'"),
        ("import jinja2.surely_missing", "No module named 'jinja2.surely_missing'"),
    ],
)
def test_a_broken_package_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imported: str, text: str
) -> None:
    """An installed package whose own imports fail."""
    (tmp_path / "s3fs").mkdir()
    (tmp_path / "s3fs" / "__init__.py").write_text(f"{imported}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "s3fs", raising=False)
    with pytest.raises(ImportError, match=text), extra("s3"):
        import_module("s3fs")


def test_a_folder_that_a_run_left_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes a folder for a package without code, and `python -m` looks into the current one."""
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    installed = any((Path(folder) / "trackio" / "__init__.py").exists() for folder in sys.path)
    assert is_installed("trackio") == installed


def test_nothing_of_the_package_names_the_command_by_hand() -> None:
    """Whoever needs an extra says so through `extras.py`, whose table is compared with pyproject.toml above."""
    for top in ("ldm_vae", "train"):
        for path in (ROOT / top).rglob("*.py"):
            if path.relative_to(ROOT) != Path("ldm_vae/extras.py"):
                assert "ldm-vae[" not in path.read_text(), path


def test_the_command_installs_that_extra_of_this_project() -> None:
    assert install_command("report") == f'pip install "{PROJECT["name"]}[report]"'


@pytest.mark.parametrize("module", ["train.recipe", "train.dry_run", "ldm_vae.codec", "ldm_vae.cli.encode"])
def test_what_starts_quickly_loads_no_package_of_an_extra(module: str) -> None:
    """torchmetrics alone takes seconds; of the base, diffusers and torchvision do."""
    heavy = {package for packages in PACKAGES.values() for package in packages} | {"diffusers", "torchvision"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
