"""What people have who used 0.1.0 is loaded, resumed, read and finished by this version.

Each test works on a copy of made_by_0_1_0/, by the commands and names that people use, with the paths they were made
with. Files of later formats get folders of their own beside it; this one stays as it is.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from html import unescape
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from ldm_vae import LatentCodec, LatentDataset
from tests.conftest import ROOT, members
from tests.golden.codec_tensors import tensors_of
from tools.golden import GOLDEN, ONE_THREAD, read_rows

MADE = GOLDEN / "made_by_0_1_0"
# The continuation is 4 steps of float32 with a smooth pixel loss. Over the settings that test_golden.py names it strays
# by 1e-5 of each value; this is a hundred times as much.
RELATIVE, ABSOLUTE = 1e-3, 1e-5
DRAWN = 162.2484304085374  # the sum of the third latent, drawn with seed 1


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a person who used 0.1.0."""
    return copytree(MADE, tmp_path / "home")


def python(home: Path, *arguments: object) -> str:
    """What a command prints in that folder; it must end well."""
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("model", ["run", "run/checkpoints/step_00000006", "run/export"])
def test_the_codec_loads_from_run_checkpoint_and_export(home: Path, model: str) -> None:
    stored, found = (
        load_file(MADE / "codec.safetensors"),
        tensors_of(home / model, home / "shards/validation/000000.tar"),
    )
    for name, expected in stored.items():  # of float64, rounded to float32
        torch.testing.assert_close(found[name].float(), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_diffusers_loads_the_export(home: Path) -> None:
    vae = AutoencoderKL.from_pretrained(home / "run" / "export")
    codec = LatentCodec.load(home / "run")
    assert codec.scale is not None and vae.config.scaling_factor == codec.scale.factor
    latent = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            vae.decode(latent / codec.scale.factor).sample, codec.decode(latent), rtol=0, atol=1e-4
        )


def test_the_run_goes_on_as_if_nothing_had_happened(home: Path) -> None:
    before = (home / "run" / "metrics.jsonl").read_text()
    python(home, "train", "recipe.yaml", "steps=10")
    after = (home / "run" / "metrics.jsonl").read_text()
    assert after.startswith(before)
    found, stored = (
        read_rows(home / "run" / "metrics.jsonl")[len(before.splitlines()) :],
        read_rows(MADE / "continuation.jsonl"),
    )
    assert [(row["step"], row.keys()) for row in found] == [(row["step"], row.keys()) for row in stored]
    for ours, theirs in zip(found, stored, strict=True):
        assert ours == pytest.approx(theirs, rel=RELATIVE, abs=ABSOLUTE), theirs["step"]
    assert json.loads((home / "run" / "status.json").read_text())["status"] == "done"
    assert [path.name for path in (home / "run" / "checkpoints").iterdir()] == ["step_00000010"]


def test_statistics_give_the_export_again(home: Path) -> None:
    """The statistics are still known to be of these weights, and give the same scale; so does results.json the card."""
    python(home, "ldm_vae", "export", "run", "again", "--target", "sd")
    first, again = (json.loads((home / folder / "config.json").read_text()) for folder in ("run/export", "again"))
    assert {key: value for key, value in first.items() if again.get(key) != value} == {}
    weights = "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(home / "again" / weights), load_file(home / "run" / "export" / weights)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    psnr = json.loads((home / "run" / "results.json").read_text())["metrics"]["psnr"]
    assert f"| psnr | {psnr:.4f} |" in (home / "again" / "README.md").read_text()


def test_the_report_shows_results_and_inspection(home: Path) -> None:
    python(home, "ldm_vae", "report", "run")
    page = unescape((home / "run" / "report.html").read_text())
    for excuse in ("cannot be shown", "Nobody has", "There is no", "cannot be read"):
        assert excuse not in page
    results = json.loads((home / "run" / "results.json").read_text())
    for measured in (results, results["others"][0]):
        assert all(f"{value:.4g}" in page for value in measured["metrics"].values())
    sections = json.loads((home / "run" / "inspection" / "inspection.json").read_text())["sections"]
    assert all(verdict["statement"] in page for section in sections for verdict in section["verdicts"])


def test_finished_latents_are_read(home: Path) -> None:
    latents = LatentDataset(home / "latents", codec=LatentCodec.load(home / "run"), sample=False, mirror=False)
    assert [latents.key(item) for item in range(len(latents))] == ["001", "000", "005", "006", "002", "004"]
    info = json.loads((home / "latents" / "latents.json").read_text())
    stored = members(home / "latents" / "000001.tar")
    for item, key in ((3, "006"), (5, "004")):
        mean, _ = np.split(np.load(io.BytesIO(stored[f"{key}.moments.npy"])).astype(np.float32), 2)
        expected = torch.from_numpy(mean * np.float32(info["scale"]["scaling_factor"]))
        found = latents[item]
        torch.testing.assert_close(found["latent"], expected, rtol=1e-6, atol=0)
        assert (found["key"], found["cls"]) == (key, int(key) % 3)
        assert list(latents.size(item)) == info["sizes"]["000001.tar"][key]
    drawn = LatentDataset(home / "latents", seed=1)[2]["latent"]  # noise and mirrors are functions of the seed
    assert drawn.double().sum().item() == pytest.approx(DRAWN, rel=1e-5)


def test_half_finished_latents_are_finished(home: Path) -> None:
    before = (home / "half" / "000000.tar").read_bytes()
    python(home, "ldm_vae", "encode", "run", "shards/train", "half", "--mirrored")
    assert (home / "half" / "000000.tar").read_bytes() == before
    ours, theirs = members(home / "half" / "000001.tar"), members(home / "latents" / "000001.tar")
    assert list(ours) == list(theirs)
    for name, content in theirs.items():
        if name.endswith(".npy"):  # float16 of float32 that was summed in another order: one step of it
            found, expected = (np.load(io.BytesIO(data)).astype(np.float32) for data in (ours[name], content))
            np.testing.assert_allclose(found, expected, rtol=2**-9, atol=1e-4)
        else:
            assert ours[name] == content
    said, wanted = (leaves(json.loads((home / name / "latents.json").read_text())) for name in ("half", "latents"))
    assert said.keys() == wanted.keys()
    for place, value in wanted.items():
        assert said[place] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), place


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Everything that stands at the end of a tree, by where it stands."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, item in items for name, leaf in leaves(item, f"{path}/{key}").items()}
