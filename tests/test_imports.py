"""Imports point one way: from the shards towards the report, never in a circle, and never at a test."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ldm_vae.parts import ADVERSARIES, BOTTLENECKS, CHAINS, LAYOUTS, LIKELIHOODS, MADE, NETWORKS
from tests.conftest import ROOT

# A file imports from its own room and from rooms before it. Modules that need no other room stand first.
ROOMS = (
    "choices",
    "passwords",
    "errors",
    "extras",
    "versions",
    "printable",
    "quantities",
    "machine",
    "system",
    "ending",
    "tensors",
    "documents",
    "precision",
    "arithmetic",
    "ranks",
    "progress",
    "waiting",
    "launch",
    "devices",
    "schedules",
    "writers",
    "marks",
    "locks",
    "stages",
    "atomic",
    "cache",
    "transfer",
    "checks",
    "sparing",
    "fitting",
    "overlap",
    "noise",
    "recipe",
    "parts",
    "data.images",
    "images",
    "data.shards",
    "data.stream",
    "nn",
    "bottlenecks",
    "views",
    "networks",
    "finite",
    "arguments",
    "padding",
    "pretrained",
    "losses",
    "metrics",
    "piecewise",
    "interop",
    "codec",
    "evaluation",
    "latents",
    "diagnostics",
    "report",
    "family",  # textbook models, behind a wall (`breaches`)
    "cli",
)
WALLED = "ldm_vae.family"
ENTRANCES = ("", "__main__")  # ldm_vae itself, which imports names when they are asked for, and `python -m ldm_vae`


def module_of(path: Path) -> str:
    """Dotted name below the folder of the project; a package goes by its own name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path for top in ("ldm_vae", "train", "tools") for path in sorted((ROOT / top).rglob("*.py"))
}


def imported(path: Path) -> Iterator[str]:
    """The project's modules that a file imports anywhere in it, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] in TOPS:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def named(path: Path) -> Iterator[str]:
    """Every dotted name that the imports of a file may mean as a module, relative ones in full."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([] if node.module is None else [node.module])])
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


TOPS = ("ldm_vae", "train", "tools")
MEASURES = ("tools.bench.", "tools.stand_in.")
GRAPH = {name: set(imported(path)) for name, path in MODULES.items()}


def room_of(module: str) -> int:
    """Place in ROOMS; fails for a module that no room holds."""
    name = module.removeprefix("ldm_vae").removeprefix(".")
    for place, room in enumerate(ROOMS):
        if name == room or name.startswith(f"{room}."):
            return place
    pytest.fail(f"{module} lies in no room: put it into one, or name a new room here")


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "ldm_vae"])
def test_imports_point_one_way(module: str) -> None:
    name = module.removeprefix("ldm_vae").removeprefix(".")
    if name in ENTRANCES or module == "ldm_vae.data":
        return
    assert {other.split(".")[0] for other in GRAPH[module]} <= {"ldm_vae"}
    forward = [other for other in GRAPH[module] if other != "ldm_vae" and room_of(other) > room_of(module)]
    assert not forward, f"{module} imports from a later room: {forward}"


def breaches(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules outside the walled room that import from it; the commands alone may."""
    outside = [module for module in graph if not module.startswith((f"{WALLED}.", "ldm_vae.cli.")) and module != WALLED]
    return [
        module for module in outside if any(name == WALLED or name.startswith(f"{WALLED}.") for name in graph[module])
    ]


def test_the_textbook_family_stays_behind_its_wall() -> None:
    assert breaches(GRAPH) == []
    inside = {"ldm_vae.family.flow": ["ldm_vae.family.prior"], "ldm_vae.cli.family": ["ldm_vae.family.flow"]}
    assert breaches(inside) == []
    assert breaches({**inside, "train.step": ["ldm_vae.family"], "ldm_vae.codec": ["ldm_vae.family.prior"]}) == [
        "train.step",
        "ldm_vae.codec",
    ]


def test_modules_are_imported_by_a_string_for_the_kinds_of_parts_alone() -> None:
    """What `import_module` is given is no import that the tests above see: it is the entry of a table.

    Beside the kinds, the package imports its public names and its commands when they are asked for.
    The harness of faults imports in advance what its jobs import; the runner of published scripts imports from them.
    """
    callers = {name for name, path in MODULES.items() if "import_module(" in path.read_text()}
    kinds = {"ldm_vae.recipe", "ldm_vae.interop.layouts.layout", "ldm_vae.piecewise.chains.chain"}
    kinds.add("ldm_vae.data.shards.made")
    assert callers == {"ldm_vae", "ldm_vae.cli.app", "tools.every_call", "tools.published_scripts"} | kinds
    named = [
        kind.module for kinds in (NETWORKS, BOTTLENECKS, LIKELIHOODS, ADVERSARIES) for kind in kinds.table.values()
    ]
    named += [kind.measures for kind in NETWORKS.table.values() if kind.measures]
    named += [module for _, module in LAYOUTS.values()] + [*CHAINS.values(), *MADE.values()]
    assert set(named) <= MODULES.keys()


def test_no_circle() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the circle


def test_train_and_tools_use_the_package_and_never_each_other() -> None:
    """What measures training imports it: it counts and times the step itself."""
    for top, other in (("train", "tools"), ("tools", "train")):
        for module in MODULES:
            if module.split(".")[0] == top and not module.startswith(MEASURES):
                assert not [name for name in GRAPH[module] if name.split(".")[0] == other], module


def test_no_module_of_tests_imports_a_test_module() -> None:
    """What two of them need has a module of its own: the one would bring the other's tests and fixtures along."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    modules = [f".{module_of(path)}" for path in paths if path.name.startswith("test_")]
    assert modules
    for path in paths:
        # A name may also be short, where a file puts its own folder on the path.
        taken = [name for name in named(path) if any(module.endswith(f".{name}") for module in modules)]
        assert not taken, f"{path.relative_to(ROOT)} imports {taken}: move what it needs to a module of its own"
