"""Runs diffusers' own tests of AutoencoderKL through the drop-in: what they ask of behaviour must hold of it, too.

    git clone --depth 1 --branch v0.40.0-release https://github.com/huggingface/diffusers
    python -m tools.diffusers_suite diffusers/        prints what passed, failed and was left out, and why
    python -m tools.diffusers_suite diffusers/ --own  the same tests with diffusers' own class, to compare

Their tests make models of the class that their module names AutoencoderKL. Here that is the drop-in's class, with a
codec. The installed diffusers is tested, not that of the checkout; take one of a near version. The tests need pytest
and `parameterized`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import typer

from ldm_vae import LatentCodec, UserError
from tools.command import run_command

TESTS = "tests/models/autoencoders/test_models_autoencoder_kl.py"
ALSO = ("AttentionTesterMixin", "TorchCompileTesterMixin")  # of diffusers' tests of other models, where there are any
# Tests that say nothing about behaviour, by the beginning of their name.
EXCLUDED = {
    "test_from_pretrained_hub": "fetches weights from the Hub",
    "test_output_pretrained": "fetches weights from the Hub",
    "test_single_file": "fetches weights from the Hub",
    "test_checkpoint": "fetches weights from the Hub",
}


def diffusers_suite(
    checkout: Annotated[Path, typer.Argument(help="A checkout of diffusers.")],
    own: Annotated[bool, typer.Option("--own", help="Test diffusers' own class instead, to compare.")] = False,
) -> None:
    """Run diffusers' own tests of AutoencoderKL through the drop-in."""
    if not (checkout / TESTS).is_file():
        raise UserError(f"{checkout} holds no {TESTS}", "give a checkout of diffusers")
    if find_spec("parameterized") is None:
        raise UserError("diffusers' tests need the package parameterized", "pip install parameterized")
    import diffusers
    import pytest

    suite = Suite(own)
    root = checkout.resolve()
    # Their package is called tests, as ours is: theirs must be the one that is found.
    sys.path[:] = [str(root), *(path for path in sys.path if Path(path or ".").resolve() != Path.cwd())]
    os.chdir(root)
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(root), "--continue-on-collection-errors"]
    code = pytest.main([*options, TESTS], plugins=[suite])
    for name, reason in sorted(suite.left_out.items()):
        print(f"left out: {name}: {reason}")
    which = "diffusers' own class" if own else "the drop-in"
    counts = ", ".join(f"{suite.outcomes[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    print(f"diffusers {diffusers.__version__}, {which}: {counts}, {len(suite.left_out)} left out")
    print(f"the codec ran in {len(suite.through_codec)} of those tests")
    sys.exit(int(code))


class Suite:
    """A plugin of pytest: puts the drop-in into their tests, and counts.

    own: leaves diffusers' own class in place.
    outcomes: number of tests that passed, failed and were skipped.
    left_out: tests that are not run -> why.
    through_codec: tests in which the codec encoded or decoded.
    """

    def __init__(self, own: bool) -> None:
        self.own = own
        self.outcomes: Counter[str] = Counter()
        self.left_out: dict[str, str] = {}
        self.through_codec: set[str] = set()
        self._running = ""

    def pytest_collection(self) -> None:
        """Adds the tests that diffusers asks of other models only."""
        module = resolve_name(TESTS.removesuffix(".py").replace("/", "."))
        mixins = resolve_name("tests.models.testing_utils")
        if (config := getattr(module, "AutoencoderKLTesterConfig", None)) is not None:
            for mixin in (getattr(mixins, name) for name in ALSO if hasattr(mixins, name)):
                name = f"TestAutoencoderKL{mixin.__name__}"
                setattr(module, name, type(name, (config, mixin), {"__module__": module.__name__}))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in list(items):
            for name, reason in EXCLUDED.items():
                if item.name.startswith(name):
                    self.left_out[item.nodeid.partition("::")[2]] = reason
                    items.remove(item)
        if not self.own:
            model = self._drop_in()
            for item in items:
                item.module.AutoencoderKL = model

    def pytest_runtest_setup(self, item: Any) -> None:
        self._running = item.nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1

    def _drop_in(self) -> type:
        """The drop-in's class with a codec, which notes the test that runs."""
        from ldm_vae.interop.drop_in import ExactAutoencoderKL

        suite = self

        class Counted(LatentCodec):
            def checked_moments(self, *args: Any, **kwargs: Any) -> Any:
                suite.through_codec.add(suite._running)
                return super().checked_moments(*args, **kwargs)

            def decode_raw(self, *args: Any, **kwargs: Any) -> Any:
                suite.through_codec.add(suite._running)
                return super().decode_raw(*args, **kwargs)

        ExactAutoencoderKL.make_codec = Counted
        return ExactAutoencoderKL


if __name__ == "__main__":
    run_command(diffusers_suite)
