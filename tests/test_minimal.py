"""What the base installation does, and what it says of the rest.

`make test-minimal` runs this in an environment without any extra, which LDM_VAE_MINIMAL says. In any other one, the
commands run where the packages of the extras cannot be found (`tests/without_extras.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ldm_vae.cli.app import COMMANDS
from ldm_vae.extras import install_command, is_installed
from tests.cli.conftest import run, shards  # noqa: F401
from tests.conftest import ROOT, npy, write_tar
from tests.without_extras import EXTRAS

pytestmark = pytest.mark.slow  # `make test-minimal` runs them, too

NEEDING = {  # command -> what it says
    "evaluate": 'evaluate: torchmetrics is not installed: pip install "ldm-vae[metrics]"',
    "inspect": 'inspect: torchmetrics is not installed: pip install "ldm-vae[metrics]"',
    "roundtrip": 'roundtrip: torchmetrics is not installed: pip install "ldm-vae[metrics]"',
    "report": 'report: matplotlib is not installed: pip install "ldm-vae[report]"',
}


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def ask(*commands: Sequence[object]) -> list[Answer]:
    """What commands do, one after the other, where no package of an extra can be found."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.without_extras"],
        cwd=ROOT, input=json.dumps([[str(word) for word in command] for command in commands]),
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Answer(**answer) for answer in json.loads(done.stdout)]


@pytest.mark.skipif("LDM_VAE_MINIMAL" not in os.environ, reason="make test-minimal runs it in the environment it makes")
def test_the_environment_has_no_extra() -> None:
    assert [package for package in EXTRAS if is_installed(package)] == []


def test_a_codec_is_used_without_any_extra(run: Path, shards: Path, tmp_path: Path) -> None:  # noqa: F811
    latents, pictures, exported = tmp_path / "latents", tmp_path / "pictures", tmp_path / "exported"
    code = f"""
import torch
from diffusers import AutoencoderKL
from ldm_vae import LatentCodec, LatentDataset
codec = LatentCodec.load({str(run)!r}, device="cpu")
image = torch.rand(1, 3, 20, 28) * 2 - 1
assert codec.decode(codec.encode(image), size=(20, 28)).shape == image.shape
exported = LatentCodec.load({str(exported)!r}, device="cpu")
assert torch.equal(codec.moments(image[..., :16, :16]), exported.moments(image[..., :16, :16]))
assert AutoencoderKL.from_pretrained({str(exported)!r}).config.scaling_factor == exported.scale.factor
print(len(LatentDataset({str(latents)!r})))
"""
    answers = ask(
        ["ldm-vae", "stats", run, shards, "--write"],
        ["ldm-vae", "encode", run, shards, latents],
        ["ldm-vae", "decode", run, latents, pictures],
        ["ldm-vae", "shards", pictures, tmp_path / "again"],
        ["ldm-vae", "check", tmp_path / "again", "--decode"],
        ["ldm-vae", "export", run, exported, "--target", "sd"],
        ["python", code],
    )
    assert [answer.code for answer in answers] == [0] * len(answers), answers
    assert answers[-1].out == "11\n"  # pictures in `shards`
    assert len(list(pictures.rglob("*.png"))) == 11
    assert (tmp_path / "again" / "index.json").is_file()


def test_every_command_explains_itself() -> None:
    for name, answer in zip(COMMANDS, ask(*(["ldm-vae", name, "--help"] for name in COMMANDS)), strict=True):
        assert answer.code == 0 and f" {name} [OPTIONS]" in answer.out, (name, answer)


def test_what_needs_an_extra_says_so_before_it_does_anything(tmp_path: Path) -> None:
    """Not even the arguments are looked at: no file of these names exists."""
    absent = tmp_path / "absent"
    answers = ask(*(["ldm-vae", name, *[absent] * (3 if name == "roundtrip" else 2)] for name in NEEDING))
    for (name, said), answer in zip(NEEDING.items(), answers, strict=True):
        assert (name, answer) == (name, Answer(2, "", f"ldm-vae: {said}\n"))
    assert list(tmp_path.iterdir()) == []


def test_training_names_what_its_recipe_needs(tmp_path: Path) -> None:
    says = {  # changes of the recipe -> the line
        (): 'log.trackers: tensorboard is not installed: pip install "ldm-vae[train]"',
        ("log.trackers=[wandb]",): 'log.trackers: wandb is not installed: pip install "ldm-vae[wandb]"',
        ("log.trackers=[]", "validation.metrics=[ssim]"): (
            'validation.metrics: torchmetrics is not installed: pip install "ldm-vae[train]"'
        ),
    }
    data = ["data.train=absent", "data.validation=absent", f"output={tmp_path / 'run'}"]
    answers = ask(*(["train", ROOT / "configs" / "demo_cpu.yaml", *data, *changes] for changes in says))
    assert answers == [Answer(2, "", f"train: {said}\n") for said in says.values()]
    assert list(tmp_path.iterdir()) == []


def test_tiff_and_buckets_name_their_extras(run: Path, tmp_path: Path) -> None:  # noqa: F811
    write_tar(tmp_path / "tiff" / "000000.tar", {"a.npy": npy(np.zeros((3, 16, 16), np.uint8)), "b.tif": b"II*\0"})
    said = f"tiff and 16-bit png: imagecodecs is not installed: {install_command('raster')}"
    checked, encoded, bucket = ask(
        ["ldm-vae", "check", tmp_path / "tiff", "--decode"],
        ["ldm-vae", "encode", run, tmp_path / "tiff", tmp_path / "latents"],
        ["ldm-vae", "check", "s3://bucket/000000.tar"],
    )
    assert (checked.code, checked.err) == (encoded.code, encoded.err) == (2, f"ldm-vae: {said}\n")
    assert bucket.code == 2 and bucket.err.endswith(f": s3fs is not installed: {install_command('s3')}\n"), bucket


def test_the_library_says_the_same() -> None:
    """Whatever of it needs an extra, called from Python with arguments that would do."""
    calls = {
        "metrics.image": "ImageMetrics(('psnr', 'ssim'))",
        "metrics.sets": "SetMetrics(('rfid',))",
        "metrics.frechet": "frechet_distance(numpy.zeros((2, 3)), numpy.zeros((2, 3)))",
        "pretrained.inception": "inception()",
        "evaluation.evaluate": "Metrics(EvaluationProtocol(), 'cpu')",
        "diagnostics.anomaly": "auc(numpy.zeros(3), numpy.ones(3))",
        "report.pictures": "None",
        "report.charts": "None",
        "report.page": "None",
        "data.images.tiff": "None",
        "data.images.depth": "None",
    }
    commands = []
    for module, call in calls.items():
        name = call.partition("(")[0]
        imported = "" if name == "None" else f"; from ldm_vae.{module} import {name}"
        lines = [
            "import numpy",
            "from ldm_vae.extras import MissingExtra",
            "try:",
            f"    import ldm_vae.{module}{imported}; from ldm_vae.evaluation.results import EvaluationProtocol",
            f"    {call}",
            "except MissingExtra as error:",
            "    print(error)",
        ]
        commands.append(["python", "\n".join(lines)])
    for module, answer in zip(calls, ask(*commands), strict=True):
        assert 'is not installed: pip install "ldm-vae[' in answer.out, (module, answer)
