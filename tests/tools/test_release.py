"""A release is refused where versions disagree or the tree has changes; a real one is built and tried in a clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_vae.errors import UserError
from tests.conftest import ROOT
from tools.release import check_clean, disagreements, git, is_date

PYPROJECT = '[project]\nname = "ldm-vae"\nversion = "1.2.3"\n'
CITATION = "cff-version: 1.2.0\nversion: 1.2.3\n"
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-02-28\n\n- A change.\n\n## [1.2.2] - 2026-01-01\n"


def commit(root: Path, message: str) -> None:
    git(root, "add", "--all")
    git(root, "-c", "user.name=Test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", message)


def test_files_that_agree() -> None:
    assert disagreements("1.2.3", PYPROJECT, CITATION, CHANGELOG) == []


@pytest.mark.parametrize(
    ("changed", "old", "new", "told"),
    [
        ("pyproject", "1.2.3", "1.2.4", "pyproject.toml has version 1.2.4"),
        ("citation", "1.2.3", "1.3", "CITATION.cff has version 1.3"),
        ("changelog", "1.2.3", "1.2.4", "CHANGELOG.md has no section [1.2.3]"),
        ("changelog", "2026-02-28", "unreleased", "the section [1.2.3] of CHANGELOG.md has no date"),
        ("changelog", "2026-02-28", "2026-02-30", "the section [1.2.3] of CHANGELOG.md has no date"),
        ("changelog", " - 2026-02-28", "", "the section [1.2.3] of CHANGELOG.md has no date"),
        (
            "changelog",
            "## [Unreleased]\n",
            "## [Unreleased]\n\n- Forgotten.\n",
            "CHANGELOG.md lists unreleased changes",
        ),
    ],
)
def test_each_disagreement_is_told(changed: str, old: str, new: str, told: str) -> None:
    texts = {"pyproject": PYPROJECT, "citation": CITATION, "changelog": CHANGELOG}
    assert old in texts[changed]
    (fault,) = disagreements("1.2.3", **{**texts, changed: texts[changed].replace(old, new)})
    assert fault.startswith(told)


def test_the_files_of_the_project_can_be_read() -> None:
    """Whatever version they are at: a version that nobody has disagrees with both, and has no section."""
    texts = ((ROOT / name).read_text() for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"))
    faults = disagreements("99.99.99", *texts)
    assert [fault.split()[0] for fault in faults][:3] == ["pyproject.toml", "CITATION.cff", "CHANGELOG.md"]


def test_a_date_is_a_day_of_the_calendar() -> None:
    assert is_date("2028-02-29")
    assert not any(map(is_date, ("2026-02-29", "20260228", "2026-2-3", "unreleased", "")))


def test_a_tree_with_changes_and_a_taken_version_are_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1")
    commit(tmp_path, "first")
    check_clean(tmp_path, "1.2.3")
    (tmp_path / "new").write_text("")
    (tmp_path / "a").write_text("2")
    with pytest.raises(UserError, match="2 changed or new files"):
        check_clean(tmp_path, "1.2.3")
    git(tmp_path, "tag", "v1.2.3")
    commit(tmp_path, "second")
    with pytest.raises(UserError, match=r"v1\.2\.3 is tagged at"):
        check_clean(tmp_path, "1.2.3")
    check_clean(tmp_path, "1.2.4")
    git(tmp_path, "tag", "v1.2.4")
    check_clean(tmp_path, "1.2.4")  # the tag of this very commit


@pytest.mark.slow
@pytest.mark.network  # setuptools is fetched into the environment that builds
def test_a_release_of_this_tree(tmp_path: Path) -> None:
    """The files of the checkout as a repository of their own, at a version that is nowhere else."""
    pytest.importorskip("build")
    pytest.importorskip("twine")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, text=True, capture_output=True)
    if names.returncode:
        pytest.skip("the checkout is no git repository")
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("## [9.8.7] - 2026-01-01\n")
    for name in ("pyproject.toml", "CITATION.cff"):
        text = (tmp_path / name).read_text()
        old = next(line for line in text.splitlines() if line.startswith("version"))
        new = 'version = "9.8.7"' if name == "pyproject.toml" else "version: 9.8.7"
        (tmp_path / name).write_text(text.replace(old, new, 1))
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, "release")
    done = subprocess.run(
        [sys.executable, "-m", "tools.release", "9.8.7", "--dependencies", "present"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    if done.returncode and "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("setuptools could not be fetched")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "dist" / "9.8.7").iterdir()} == {
        "ldm_vae-9.8.7-py3-none-any.whl",
        "ldm_vae-9.8.7.tar.gz",
    }
    assert "evaluate" in done.stdout  # of ldm-vae --help
    assert "<class 'ldm_vae.codec.LatentCodec'>" in done.stdout
    assert "twine upload" in done.stdout
    assert git(tmp_path, "status", "--porcelain") == ""  # what was built is ignored
