"""The tree reads from the top: the README names the folders, and the docstring of each folder names its files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOPS = ("ldm_vae", "train", "tools")
FOLDERS = sorted(path.parent.relative_to(ROOT) for top in TOPS for path in (ROOT / top).rglob("__init__.py"))


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_lists_its_files(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    indents, listed = zip(*re.findall(r"^( *)([a-z_]+(?:\.py|/)) ", docstring, re.MULTILINE), strict=True)
    assert len(set(indents)) == 1  # one list, aligned
    here = ROOT / folder
    files = [path.name for path in here.glob("*.py") if path.name != "__init__.py"]
    rooms = [f"{path.parent.name}/" for path in here.glob("*/__init__.py")]
    assert sorted(listed) == sorted(files + rooms)


@pytest.mark.parametrize("top", TOPS)
def test_no_python_lies_outside_of_a_listed_folder(top: str) -> None:
    assert {path.parent.relative_to(ROOT) for path in (ROOT / top).rglob("*.py")} <= set(FOLDERS)


def test_the_readme_lists_the_folders() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    listed = re.findall(r"^([\w./]+)/ ", tree, re.MULTILINE)
    packages = [str(folder) for folder in FOLDERS if str(folder).count("/") <= 1]
    assert sorted(name for name in listed if name.split("/")[0] in TOPS) == packages
    assert all((ROOT / name).is_dir() for name in listed)
