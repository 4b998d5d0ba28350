"""Versions of dependencies: constraints.txt fits pyproject.toml, and a bound that nobody can have is named."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT
from tools.versions import BY_TORCH, lines, requirements, told_of, unreachable

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = {
    requirement.name: requirement
    for requirement in map(
        Requirement,
        (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")),
    )
}


def pin(name: str) -> str:
    (specifier,) = CONSTRAINTS[canonicalize_name(name)].specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("wanted", [*requirements(PROJECT), *requirements(PROJECT, "all")], ids=str)
def test_constraints_hold_each_requirement_within_its_bounds(wanted: Requirement) -> None:
    """After a change of bounds: `make constraints`."""
    assert wanted.specifier.contains(pin(wanted.name), prereleases=True)


def test_constraints_are_for_any_build_of_torch() -> None:
    for name in CONSTRAINTS:
        assert Version(pin(name)).local is None and not name.startswith(BY_TORCH)


def test_an_extra_includes_those_of_others() -> None:
    project = {
        "name": "ours",
        "dependencies": ["torch>=2"],
        "optional-dependencies": {"a": ["b>=1"], "c": ["ours[a]", "d[e]>=2"], "all": ["ours[a,c]"]},
    }
    assert list(map(str, requirements(project))) == ["torch>=2"]
    assert list(map(str, requirements(project, "all"))) == ["b>=1", "b>=1", "d[e]>=2"]


def test_a_bound_that_others_exclude_is_named() -> None:
    wanted = [Requirement("One.Two>=1.5,<2"), Requirement("three>=3"), Requirement("four")]
    pins = {"one-two": Version("1.5.2"), "three": Version("3.1"), "four": Version("9")}
    assert unreachable(wanted, pins) == []
    pins["three"] = Version("4.1")
    assert unreachable(wanted, pins) == ["three 3 is allowed, and the lowest that fits the others is 4.1"]
    pins["one-two"] = Version("1.6")
    assert unreachable(wanted, pins)[0] == "One.Two 1.5 is allowed, and the lowest that fits the others is 1.6"


def test_local_parts_go_and_versions_that_were_not_tested_are_named() -> None:
    assert lines({"torch": Version("2.9.1+cpu"), "numpy": Version("2.0")}) == "numpy==2.0\ntorch==2.9.1\n"
    pins = {"numpy": Version("2.0"), "pillow": Version("12.0"), "s3fs": Version("2026.1")}
    told = told_of(pins, {"numpy": Version("2.0"), "pillow": Version("13.0")})
    assert "pillow (13.0)." in told and "chosen to fit: s3fs." in told and "numpy" not in told
    assert all(line.startswith("# ") and len(line) <= 120 for line in told.splitlines())
