"""What commands import before they answer: a question, and a mistake, wait for nothing that they don't need.

Each runs in a fresh process, which says what it has imported. Of the packages that pyproject.toml names, a command may
import those in its row, and no other: a new dependency is forbidden everywhere until a row allows it. Seconds are
measured by `python -m tools.bench_start`; here they would depend on the machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ldm_vae.cli.app import COMMANDS
from tests.conftest import ROOT

IMPORT_NAMES = {  # of distributions whose modules are named otherwise
    "pillow": "PIL",
    "ruamel.yaml": "ruamel",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "pytest-xdist": "xdist",
}
RUNNER = """
import atexit, json, pathlib, runpy, sys
report, module = pathlib.Path(sys.argv[1]), sys.argv[2]
names = lambda: sorted({name.partition(".")[0] for name in sys.modules})
atexit.register(lambda: report.write_text(json.dumps(names())))
del sys.argv[:2]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
SUBCOMMANDS = [name for name in COMMANDS if name != "train"]  # which becomes `python -m train`
PAGE = {"typer", "rich", "pydantic"}  # a page of help; newer versions of typer use pydantic
OPTIONS = {"ruamel", "numpy", "tqdm", "tenacity"}  # what subcommands share
RECIPE = {"torch", "packaging", "accelerate", "safetensors", "einops", "PIL", "fsspec"} | OPTIONS


def dependencies() -> set[str]:
    """The modules of all packages that pyproject.toml names, of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=~!; ]", one)[0].lower() for part in lists for one in part} - {"ldm-vae"}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def imported(folder: Path, *arguments: str, code: int = 0) -> set[str]:
    """Of `dependencies`, those that `python -m ARGUMENT...` has imported when it ends."""
    report = folder / "imported.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(report), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    found = set(json.loads(report.read_text()))
    assert "Traceback" not in done.stderr and found & {"ldm_vae", "train"}  # the command did run
    return found & dependencies()


def test_the_dependencies_are_known_by_the_names_of_their_modules() -> None:
    assert {"torch", "torchmetrics", "torch_fidelity", "diffusers", "scipy", "PIL", "tensorboard"} <= dependencies()


def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys, ldm_vae; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & dependencies()


@pytest.mark.parametrize(
    ("arguments", "may"),
    [
        (("ldm_vae", "--help"), PAGE),
        (("ldm_vae", "--version"), PAGE),
        *((("ldm_vae", command, "--help"), PAGE | OPTIONS) for command in SUBCOMMANDS),
        (("train", "--help"), PAGE),
        (("train", "--version"), PAGE),
        (("train", "--fields"), PAGE | RECIPE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",  # sets have no order
)
def test_a_question_is_answered_at_once(tmp_path: Path, arguments: tuple[str, ...], may: set[str]) -> None:
    assert imported(tmp_path, *arguments) <= may


def test_a_mistyped_field_is_told_by_the_configuration_alone(tmp_path: Path) -> None:
    found = imported(tmp_path, "train", "configs/kl_f8_c4.yaml", "data.trian=x", code=2)
    assert found <= PAGE | RECIPE


def test_a_mistyped_option_needs_no_code_behind_it(tmp_path: Path) -> None:
    assert imported(tmp_path, "train", "configs/kl_f8_c4.yaml", "--dryrun", code=2) <= PAGE
    assert (
        imported(tmp_path, "ldm_vae", "evaluate", "run", "shards", "--presicion", "bfloat16", code=2) <= PAGE | OPTIONS
    )


def test_a_dry_run_loads_no_metric_and_no_pipeline(tmp_path: Path, recipe: Path) -> None:
    """It builds networks and reads images; metrics, trackers and diffusers' networks have no part in that."""
    found = imported(tmp_path, "train", str(recipe), "--dry-run")
    assert found <= PAGE | RECIPE | {"webdataset", "torchvision", "lpips"}
