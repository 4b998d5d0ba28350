"""A process in which no package of an extra is found: runs commands given as JSON on stdin, and says what they did.

Where the extras are not installed, as in the environment of `make test-minimal`, nothing needs to be hidden.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import ModuleSpec
from typing import Any

from ldm_vae.extras import PACKAGES

EXTRAS = {package for packages in PACKAGES.values() for package in packages}


class Blind:
    """A finder of modules that does not find the packages of the extras."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        found: ModuleSpec | None = None if name in EXTRAS else self.finder.find_spec(name, path, target)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)  # distributions, caches


def program(name: str) -> Callable[[list[str]], object]:
    """What runs the arguments of a command, by its first word."""
    if name == "ldm-vae":
        from ldm_vae.cli.app import main

        return main
    if name == "train":
        from train.__main__ import app

        return app
    assert name == "python"
    return lambda arguments: exec(arguments[0], {})


def answer(command: list[str]) -> dict[str, Any]:
    """Exit code, stdout and stderr of a command; the code of one that returns is 0."""
    code: object = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            program(command[0])(command[1:])
        except SystemExit as stop:
            code = stop.code or 0
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    assert not EXTRAS & sys.modules.keys()
    sys.meta_path[:] = [Blind(finder) for finder in sys.meta_path]
    answers = [answer(command) for command in json.load(sys.stdin)]
    json.dump({"answers": answers, "loaded": sorted(EXTRAS & sys.modules.keys())}, sys.stdout)
