"""A run that was never trained but is whole: what training, evaluation and inspection leave; and hostile names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import Axis, Chart, Inspection, Line, Matrix, PictureFile, Quantity, Section, Verdict
from ldm_vae.evaluation.compare import PairedDifference, differences_to_json
from ldm_vae.evaluation.evaluate import describe_codec, evaluate_shards
from ldm_vae.evaluation.results import EvaluationProtocol
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.diffusers import STATISTICS
from ldm_vae.metrics.latent import LatentMoments, LatentStatistics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.report.page import write_report
from tests.conftest import encoded, picture, write_tar

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4, latent_channels=2)
ATTACK = "<script>alert(1)<|script>"  # as a key; the bar stands for a slash, which would be a folder
KEYS = ("cat", "dog", ATTACK, "quote\"'&amp;", "umlaut-ä", "small")
SIZES = {"small": (20, 24), "dog": (180, 170), "umlaut-ä": (190, 176)}  # width, height; two are enough for MS-SSIM
RECIPE = """\
output: {run}
steps: 200
seed: {seed}
model: {{latent_channels: 2, block_out_channels: [8, 16]}}
data: {{train: photographs, validation: {shards}, batch: 4}}
optimizer: {{lr: {lr}}}
loss: {{perceptual: null}}
"""


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it; a test that changes something takes `run`."""
    folder = tmp_path_factory.mktemp("reported")
    return make_run(folder / "run", write_shard(folder / "shards"))


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; its shards are shared."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def page(whole_run: Path) -> Path:
    """The report of `whole_run`."""
    return write_report([str(whole_run)], None, None, f"ldm-vae report {whole_run}")


def make_run(folder: Path, shards: Path, *, seed: int = 0, lr: float = 1e-3) -> Path:
    torch.manual_seed(seed)
    states = {"model": Autoencoder(CONFIG).state_dict(), "ema": Autoencoder(CONFIG).state_dict()}
    Checkpoint.write(
        folder / "checkpoints/step_00000200", states, {"step": 200, "model": CONFIG.model_dump(mode="json")}
    )
    (folder / "recipe.yaml").write_text(RECIPE.format(run=folder, shards=shards, seed=seed, lr=lr))
    status = {"status": "done", "reason": "", "host": "node-3", "pid": 7, "updated": "2026-01-02T03:04:05+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(lr)))
    write_results(folder, shards)
    write_inspection(folder)
    write_statistics(folder)
    return folder


def rows(lr: float) -> list[dict[str, float | None]]:
    """As train/log.py writes them."""
    logged: list[dict[str, float | None]] = []
    for step in range(10, 201, 10):
        decay = 0.3 + np.exp(-step / 50)
        logged.append(
            {"step": step, "pixel": 0.1 * decay, "perceptual": 0.4 * decay, "rate": 900 + step, "total": decay}
            | {"gradient_norm/model": 1e5 * decay, "learning_rate/model": lr, "epoch": step / 10, "skipped_steps": 0}
            | {"time/broken_samples": 0, "time/images_per_second": 15.0 + step % 3}
            | ({} if step < 100 else {"generator": -0.2, "generator_weight": None if step == 120 else 80.0})
        )
        if step % 100 == 0:
            logged.append({"step": step, "validation/psnr": 20 + step / 100, "validation/left_out": 0})
    return logged


def write_shard(folder: Path) -> Path:
    """A picture a key."""
    pictures = {f"{key}.png": encoded(picture(seed, SIZES.get(key, (96, 72)))) for seed, key in enumerate(KEYS)}
    write_tar(folder / "000000.tar", pictures)
    return folder


def write_results(run: Path, shards: Path) -> None:
    """What is measured is real; the baseline is that with an offset."""
    codec = LatentCodec.load(run, device="cpu")
    codec.scale = LatentScale()
    found = evaluate_shards(codec, str(shards), EvaluationProtocol(metrics=("psnr", "ssim", "ms_ssim")))
    other = {name: None if value is None else value - 1 for name, value in found.metrics.items()}
    content = {
        **found.to_json(),
        "protocol": describe_codec(codec) | found.protocol,
        "per_image": [row.to_json() for row in found.per_image],
        "others": [
            {
                "name": "PCA",
                "kind": "baseline",
                "metrics": other,
                "missing": found.missing,
                "protocol": {},
                "per_image": [],
            }
        ],
        "comparisons": [{"name": "PCA", "metrics": differences_to_json({"psnr": PairedDifference(1.0, 0.5, 1.5, 60)})}],
    }
    (run / "results.json").write_text(json.dumps(content))


def write_statistics(run: Path) -> None:
    moments = LatentMoments(CONFIG.latent_channels)
    moments.update(torch.randn(4, CONFIG.latent_channels, 8, 8) * 2)
    codec = LatentCodec.load(run, device="cpu").weights_hash
    LatentStatistics.of(moments, codec=codec, latents="mode", protocol={}, data="photographs").write(run / STATISTICS)


def write_inspection(run: Path) -> None:
    """One of everything that findings know."""
    x = tuple(float(i) for i in range(1, 30))
    spectrum = Line(label=ATTACK, x=x, y=tuple(1 / v for v in x))
    section = Section(
        name="rate",
        title=f"Rate {ATTACK}",
        numbers=(
            Quantity(name="kl", title="KL", definition="`gaussian_kl`.", source="Kingma 2013", value=12.5, unit="nats"),
            Quantity(name="mmd", title="MMD", definition="Distance.", value=None, missing="needs 100 images"),
        ),
        charts=(
            Chart(name="bars", title="KL per channel", definition="Mean.", kind="bar", x=Axis(title="channel"),
                  y=Axis(title="KL"), lines=(Line(label="", x=("0", "1"), y=(3.0, None)),)),
            Chart(name="cloud", title="Latents", definition="Means.", kind="scatter", x=Axis(title="first"),
                  y=Axis(title="second"), lines=(Line(label="a", x=x, y=x), Line(label="b", x=x, y=x[::-1]))),
            Chart(name="spectrum", title="Spectrum", definition="Power.", kind="line",
                  x=Axis(title="frequency", scale="log"), y=Axis(title="power", scale="log"), lines=(spectrum,)),
        ),
        matrices=(
            Matrix(name="small", title="Covariance", definition="Of channels.", rows=("0", "1"), columns=("0", "1"),
                   values=((1.0, -0.5), (-0.5, 2.0))),
            Matrix(name="large", title="Correlation", definition="Of places.", rows=tuple("x" * 20),
                   columns=tuple("y" * 20), values=tuple(tuple(float(i - j) for j in range(20)) for i in range(20))),
        ),
        pictures=(
            PictureFile(name="draws", title="Samples", definition="Draws.", file="samples.png", description="N"),
        ),
        verdicts=(
            Verdict(name="channels", level="good", statement="Both channels carry information."),
            Verdict(name="blur", level="bad", statement="12 % of the power is left.", advice="Raise `weight`."),
            Verdict(name="fp16", level="unknown", statement="Not measured."),
            Verdict(name="prior", level="warning", statement="The prior does not match."),
        ),
    )  # fmt: skip
    digest = LatentCodec.load(run, device="cpu").weights_hash
    Inspection(protocol={"model": str(run), "weights_sha256": digest}, sections=(section,)).write(run / "inspection")
    noise = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(run / "inspection" / "samples.png")
