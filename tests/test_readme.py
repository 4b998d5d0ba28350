"""The README's tree names every file once, and none that is not there."""

import re

from tests.conftest import ROOT

FOLDERS = ("ldm_vae", "train", "tools")


def test_the_tree_in_the_readme_is_the_tree() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    listed: list[str] = []
    folder = ""
    for line in tree.strip().splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        elif re.fullmatch(r"[\w.]+\.py", name):
            listed.append(folder + name)
    there = {
        str(path.relative_to(ROOT))
        for top in FOLDERS
        for path in (ROOT / top).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(listed) == sorted(there)
