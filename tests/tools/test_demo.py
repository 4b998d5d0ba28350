"""The demo's stages on a tiny recipe, interrupted, continued, and called again when all is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import AutoencoderKL

from ldm_vae.atomic import atomic_file
from tools.demo import LATENTS, count_pictures

ROOT = Path(__file__).parent.parent.parent
RECIPE = """\
output: runs/demo
steps: 4
model: {block_out_channels: [8, 8, 16], layers_per_block: 1, norm_groups: 4, latent_channels: 3, mid_attention: false}
data:
  train: runs/demo/shards/train
  validation: runs/demo/shards/validation
  batch: 2
  workers: 0
  image: {crop: 32}
loss: {perceptual: {network: alex}}
discriminator: {channels: 8, layers: 2, start: 1, generator_start: 2}
validation: {every: 100, metrics: [psnr], pictures: 1}
checkpoint: {every: 2}
log: {trackers: []}
"""

pytestmark = pytest.mark.slow


def demo(folder: Path, *arguments: str, expected: int = 0) -> str:
    """What the demo prints in a folder that holds only the recipe; with an error expected, the error."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "tools.demo", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stderr if expected else done.stdout


def test_demo_continues_and_redoes_only_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo_cpu.yaml").write_text(RECIPE)
    run = tmp_path / "runs" / "demo"
    users = tmp_path / "home" / "accelerate" / "default_config.yaml"  # what `accelerate config` wrote for other work
    users.parent.mkdir(parents=True)
    users.write_text("{distributed_type: FSDP, num_processes: 2, mixed_precision: bf16, dynamo_backend: INDUCTOR}")

    shortened = demo(tmp_path, "--steps", "2")
    note = run / "latents" / "train" / "notes.txt"
    note.write_text("years of work")
    before = set(run.rglob("*"))
    assert f"{LATENTS} holds train/notes.txt, which would be lost" in demo(tmp_path, expected=2)
    assert set(run.rglob("*")) == before
    note.unlink()
    assert "$ accelerate launch" in shortened
    assert "PCA" in shortened
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"]["step"] == 2
    assert [other["name"] for other in results["others"]] == ["pca", "jpeg", "webp"]
    linear = results["others"][0]
    assert linear["metrics"]["lpips_vgg"] < results["metrics"]["lpips_vgg"]  # two steps learn nothing yet
    assert linear["protocol"]["shards"] == results["protocol"]["shards"]

    continued = demo(tmp_path)
    assert "$ accelerate launch" in continued
    assert json.loads((run / "results.json").read_text())["protocol"]["step"] == 4
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 4
    for name in ("checkpoints", "samples", "export", "latents", "decoded", "inspection"):
        assert any((run / name).iterdir()), name
    assert len(list((run / "decoded").glob("*.png"))) == 3
    assert "</html>" in (run / "report.html").read_text()
    model, loading = AutoencoderKL.from_pretrained(run / "export", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.scaling_factor != 0.18215  # measured, not the default

    kept = {path: path.stat().st_mtime_ns for path in (run / "results.json", run / "export" / "config.json")}
    shutil.rmtree(run / "decoded")
    again = demo(tmp_path)
    called = [line.split()[2] for line in again.splitlines() if line.startswith("$")]
    assert called == ["encode", "encode", "decode", "report"]
    assert len(list((run / "decoded").glob("*.png"))) == 3
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_a_half_written_picture_does_not_count(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "c.png") as stage:  # a kill here leaves the stage
        stage.write_bytes(b"half")
        assert count_pictures(tmp_path) == 2
    assert count_pictures(tmp_path) == 3
