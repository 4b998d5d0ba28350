"""Versions of dependencies: those that the tests passed with, and the lowest that pyproject.toml allows.

python -m tools.versions tested    `make constraints`: writes constraints.txt from the environment of the tests
python -m tools.versions lowest    part of `make lower-bounds`: writes build/lowest.txt

uv chooses them. It meets the indexes that its own settings name (UV_INDEX and others), not pip's.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ldm_vae.atomic import atomic_file
from ldm_vae.errors import UserError
from tools.command import run_command

CONSTRAINTS, LOWEST = Path("constraints.txt"), Path("build/lowest.txt")
OLDEST_PYTHON = "3.11"
BY_TORCH = ("nvidia-", "cuda-", "triton")  # torch itself says which, and the build for the CPU has none of them


def versions(
    which: Annotated[Literal["tested", "lowest"], typer.Argument(help="which versions to write")],
) -> None:
    """Write a file of versions, in the root of the checkout."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    if which == "tested":
        pins = tested()
        write(CONSTRAINTS, pins, told_of(pins, installed()))
    else:
        pins = resolved("--resolution", "lowest-direct", "--extra", "all", "--extra", "test")
        wanted = [*requirements(project), *requirements(project, "all"), *requirements(project, "test")]
        if wrong := unreachable(wanted, pins):
            raise UserError("; ".join(wrong), "raise the bounds in pyproject.toml to what can be installed, and tested")
        write(LOWEST, pins, comment(f"The lowest versions that pyproject.toml allows, on Python {OLDEST_PYTHON}."))


def installed() -> dict[str, Version]:
    """What this environment holds, by name; local parts such as +cpu are left out."""
    found = {canonicalize_name(one.metadata["Name"]): Version(one.version) for one in distributions()}
    return {name: Version(version.public) for name, version in found.items()}


def tested() -> dict[str, Version]:
    """Versions for the base and all extras of users: those of this environment, others where these do not fit."""
    pins = resolved("--extra", "all", preferred=installed())
    return {name: version for name, version in pins.items() if not name.startswith(BY_TORCH)}


def told_of(pins: Mapping[str, Version], here: Mapping[str, Version]) -> str:
    """The comment over tested versions. It names those of them that the tests did not see.

    here: what the environment of the tests holds.
    """
    others = [f"{name} ({here[name]})" for name, version in pins.items() if here.get(name, version) != version]
    absent = [name for name in pins if name not in here]
    header = comment(
        f"The tests passed with these versions, on Python {platform.python_version()}: in a checkout, "
        '`pip install -c constraints.txt ".[train]"` takes them instead of the newest that are allowed. '
        "`make constraints` writes this file."
    )
    if others:
        header += comment(f"Tested with other versions, which some extra excludes: {', '.join(others)}.")
    return header + comment(f"Not tested, but chosen to fit: {', '.join(absent)}.") if absent else header


def comment(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"


def resolved(*arguments: str, preferred: Mapping[str, Version] = MappingProxyType({})) -> dict[str, Version]:
    """What `uv pip compile` makes of pyproject.toml. Raises UserError where nothing fits; uv has then said why.

    preferred: versions that uv keeps where it can, as it does with those of a file that it writes anew.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder) / "versions.txt"
        output.write_text(lines(preferred))
        options = ["--quiet", "--no-header", "--no-annotate", "--python-version", OLDEST_PYTHON]
        uv = str(Path(sys.executable).parent / "uv")
        command = [uv, "pip", "compile", *options, *arguments, "--output-file", str(output), "pyproject.toml"]
        if code := subprocess.run(command).returncode:
            raise UserError(f"uv pip compile ended with {code}", "see above")
        pins = re.findall(r"^([a-z0-9-]+)==([^\s;]+)", output.read_text(), re.MULTILINE)
    return {name: Version(version) for name, version in pins}


def lines(pins: Mapping[str, Version]) -> str:
    """A file of requirements. Local parts of versions, such as +cpu, are left out: pip takes any for them."""
    return "".join(f"{name}=={version.public}\n" for name, version in sorted(pins.items()))


def requirements(project: Mapping[str, Any], extra: str = "") -> list[Requirement]:
    """Those of an extra, and of the extras that it includes; without one, those of the base."""
    texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
    found = []
    for one in map(Requirement, texts):
        included = one.extras if one.name == project["name"] else ()
        found += [nested for name in sorted(included) for nested in requirements(project, name)] if included else [one]
    return found


def unreachable(wanted: Sequence[Requirement], pins: Mapping[str, Version]) -> list[str]:
    """Phrases about requirements whose lowest version nobody can have, since other requirements exclude it.

    A bound of fewer numbers, as 3.6, is also met by 3.6.1, if there is no 3.6.
    """
    wrong = []
    for requirement in wanted:
        bound = next((Version(one.version).release for one in requirement.specifier if one.operator == ">="), ())
        found = pins[canonicalize_name(requirement.name)]
        if found.release[: len(bound)] != bound:
            lowest = ".".join(map(str, bound))
            wrong.append(f"{requirement.name} {lowest} is allowed, and the lowest that fits the others is {found}")
    return wrong


def write(path: Path, pins: Mapping[str, Version], header: str) -> None:
    """Writes pins, by name, under a header."""
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as stage:
        stage.write_text(header + lines(pins))
    print(f"{path}: {len(pins)} packages")


if __name__ == "__main__":
    run_command(versions)
