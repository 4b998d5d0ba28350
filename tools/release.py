"""Builds and checks a release, and prints how to publish it: make release VERSION=1.2.3

First write the version into pyproject.toml, CITATION.cff and CHANGELOG.md, and commit. Nothing is uploaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer
from ruamel.yaml import YAML

from ldm_vae.atomic import refuse_foreign
from ldm_vae.errors import UserError
from tools.command import run_command

# What a user does first, in a new environment: the imported package must be that of the wheel, with its public names.
TRIAL = """\
import sys, ldm_vae
assert ldm_vae.__version__ == sys.argv[1], ldm_vae.__version__
assert ldm_vae.__file__.startswith(sys.prefix), ldm_vae.__file__
print(ldm_vae.LatentCodec, ldm_vae.LatentDataset, ldm_vae.UserError)
"""


def release(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The version, such as 1.2.3.")],
    dependencies: Annotated[
        Literal["fetched", "present"],
        typer.Option(
            help="fetched: pip installs them, several GB. present: those that are installed here; quick, without "
            "downloads, but does not show that the bounds in pyproject.toml can be met."
        ),
    ] = "fetched",
) -> None:
    """Build and check a release of this checkout."""
    root = Path.cwd()
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UserError(f"version {version!r}", "write it as 1.2.3")
    faults = disagreements(version, *(read(root / name) for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")))
    if faults:
        raise UserError("; ".join(faults), "make them agree and commit")
    check_clean(root, version)
    wheel, archive = build(root, version)
    try_wheel(wheel, version, present=dependencies == "present")
    print(f"\n{wheel.name} and {archive.name} in {wheel.parent} are built, checked and tried. To publish them:")
    print(f"    git tag --annotate v{version} --message 'ldm_vae {version}'")
    print(f"    git push origin v{version}")
    print(f"    {Path(sys.executable).parent / 'twine'} upload {wheel} {archive}")


def read(path: Path) -> str:
    """The text of a file. Raises UserError where it is missing."""
    if not path.is_file():
        raise UserError(f"{path.name} not found", "run this from the root of the checkout")
    return path.read_text(encoding="utf-8")


def disagreements(version: str, pyproject: str, citation: str, changelog: str) -> list[str]:
    """Phrases that say where the texts of the three files do not fit this release; empty where all fit."""
    faults = []
    if (project := tomllib.loads(pyproject)["project"]["version"]) != version:
        faults.append(f"pyproject.toml has version {project}")
    if (cited := str(YAML(typ="safe", pure=True).load(citation)["version"])) != version:
        faults.append(f"CITATION.cff has version {cited}")
    sections = dict(re.findall(r"^## \[([^\]]+)\](.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    heading = sections.get(version, "").partition("\n")[0]
    if version not in sections:
        faults.append(f"CHANGELOG.md has no section [{version}]")
    elif not is_date(heading.removeprefix(" - ")):
        faults.append(f"the section [{version}] of CHANGELOG.md has no date, such as [{version}] - {date.today()}")
    if sections.get("Unreleased", "").strip():
        faults.append(f"CHANGELOG.md lists unreleased changes, which belong to [{version}]")
    return faults


def is_date(text: str) -> bool:
    """Whether the text is a date, as year-month-day."""
    try:
        return str(date.fromisoformat(text)) == text
    except ValueError:
        return False


def check_clean(root: Path, version: str) -> None:
    """Raises UserError where changes are not committed, or where the version is a tag of another commit."""
    if changed := git(root, "status", "--porcelain"):
        raise UserError(f"{len(changed.splitlines())} changed or new files", "commit or remove them: see `git status`")
    tagged = git(root, "tag", "--list", f"v{version}") and git(root, "rev-list", "--max-count=1", f"v{version}")
    if tagged and tagged != git(root, "rev-parse", "HEAD"):
        raise UserError(f"v{version} is tagged at {tagged[:12]}", "choose a new version")


def git(root: Path, *arguments: str) -> str:
    """The output of git, without space at its ends."""
    done = subprocess.run(["git", *arguments], cwd=root, text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"git {arguments[0]} failed", " ".join(done.stderr.split()))
    return done.stdout.strip()


def build(root: Path, version: str) -> tuple[Path, Path]:
    """Builds a source archive in dist/ and a wheel from it, and checks both as a package index does."""
    folder = root / "dist" / version
    refuse_foreign(folder, ("*.whl", "*.tar.gz"))
    shutil.rmtree(folder, ignore_errors=True)
    # Else the archive would include what an earlier build left, such as modules that were moved since.
    shutil.rmtree(root / "build" / "lib", ignore_errors=True)
    call(sys.executable, "-m", "build", "--outdir", folder, root)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    call(sys.executable, "-m", "twine", "check", "--strict", wheel, archive)
    return wheel, archive


def try_wheel(wheel: Path, version: str, *, present: bool) -> None:
    """Installs the wheel in an empty environment outside the checkout, and runs it there.

    present: whether the environment uses the packages that are installed here instead of fetching dependencies.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        call(sys.executable, "-m", "venv", folder)
        python = folder / "bin" / "python"
        if present:
            path_file = Path(sysconfig.get_path("purelib", vars={"base": str(folder)})) / "installed_elsewhere.pth"
            path_file.write_text(sysconfig.get_path("purelib") + "\n")
            call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", wheel)
        else:
            call(python, "-m", "pip", "install", "--quiet", wheel)
            call(python, "-m", "pip", "check")
        call(folder / "bin" / "ldm-vae", "--help", cwd=folder)
        call(python, "-c", TRIAL, version, cwd=folder)


def call(*command: object, cwd: Path | None = None) -> None:
    """Prints and runs a command, without PYTHONPATH, through which it would find the checkout. Raises UserError."""
    words: Sequence[str] = [str(word) for word in command]
    print("$", " ".join(word if "\n" not in word else "..." for word in words), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if code := subprocess.run(words, cwd=cwd, env=environment).returncode:
        raise UserError(f"{Path(words[0]).name} ended with {code}", "see above")


if __name__ == "__main__":
    run_command(release)
