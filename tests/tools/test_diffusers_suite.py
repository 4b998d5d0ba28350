"""diffusers' tests get the drop-in, with a codec, for AutoencoderKL; what they say is counted and passed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_vae.errors import UserError
from tests.conftest import ROOT
from tools.diffusers_suite import diffusers_suite

# As diffusers' own file: it names the class in its module, and mixins of theirs make models of it.
TESTS = """\
import torch
from diffusers import AutoencoderKL


def model():
    return AutoencoderKL(block_out_channels=[8], norm_num_groups=4)


def test_decodes():
    with torch.no_grad():
        assert model().decode(torch.zeros(1, 4, 2, 2)).sample.shape == (1, 3, 2, 2)


def test_is_the_drop_in():
    assert model().why_plain("decode") is None


def test_from_pretrained_hub():
    raise AssertionError("it is left out")
"""


def checkout(folder: Path) -> Path:
    files = {
        "parameterized.py": "",  # which diffusers' tests import, and this project does not need
        "tests/__init__.py": "",
        "tests/models/__init__.py": "",
        "tests/models/testing_utils/__init__.py": "",
        "tests/models/autoencoders/__init__.py": "",
        "tests/models/autoencoders/test_models_autoencoder_kl.py": TESTS,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def suite(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.diffusers_suite", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_their_tests_run_through_the_drop_in_and_are_counted(tmp_path: Path) -> None:
    done = suite(checkout(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    *_, left_out, counts, through = done.stdout.splitlines()
    assert left_out == "left out: test_from_pretrained_hub: fetches weights from the Hub"
    assert counts.endswith("the drop-in: 2 passed, 0 failed, 0 skipped, 1 left out")
    assert through == "the codec ran in 1 of those tests"
    own = suite(tmp_path, "--own")
    assert own.returncode == 1
    assert "diffusers' own class: 1 passed, 1 failed, 0 skipped, 1 left out" in own.stdout


def test_a_folder_without_their_tests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a checkout of diffusers"):
        diffusers_suite(tmp_path)
