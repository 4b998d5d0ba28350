"""A process in which no package of an extra is found: runs commands given as JSON on stdin, and says what they did.

Where the extras are not installed, as in the environment of `make test-minimal`, nothing needs to be hidden.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from tempfile import TemporaryFile
from typing import Any

from ldm_vae.extras import PACKAGES

BROUGHT_ALONG = {"jinja2", "scipy"}  # the base has them: torch needs the one, lpips the other
EXTRAS = {package for packages in PACKAGES.values() for package in packages} - BROUGHT_ALONG


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
    """Exit code, stdout and stderr of a command, in a process of its own that has the codec already."""
    with TemporaryFile() as out, TemporaryFile() as err:
        if (child := os.fork()) == 0:
            os.dup2(out.fileno(), sys.stdout.fileno())
            os.dup2(err.fileno(), sys.stderr.fileno())
            program(command[0])(command[1:])
            sys.exit()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return {"code": code, "out": out.read().decode(), "err": err.read().decode()}


if __name__ == "__main__":
    assert not EXTRAS & sys.modules.keys()
    sys.meta_path[:] = [Blind(finder) for finder in sys.meta_path]
    import ldm_vae.codec  # noqa: F401

    json.dump([answer(command) for command in json.load(sys.stdin)], sys.stdout)
