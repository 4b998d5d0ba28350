"""What `ldm-vae evaluate` prints, at 80 columns, held against the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.cli.evaluation_table import print_comparisons, print_metrics, print_protocol
from ldm_vae.evaluation.compare import PairedDifference
from ldm_vae.evaluation.results import Results
from ldm_vae.metrics.image import MeasuredImage

PROTOCOL = {"shards": "val", "left_out": 1, "protocol": "ldm_vae", "resize": "none", "crop": "center 64"}


SCREEN = """\
metric                       runs/a      [/b]      jpeg
PSNR (dB) ↑                   24.57     25.00     31.50
LPIPS (VGG) ↓                0.3123    0.3300    0.0500
rFID ↓                      missing   missing   missing
Fréchet distance, VGG16 ↓  12.5000*  12.5000*  12.5000*
missing rFID: no weights of Inception
* Fréchet distance, VGG16: unreliable below 2,048 images (30)

30 images (1 left out as broken) of val, resize none, crop center 64, mode, float32
protocol ldm_vae, step 60 (runs/a), step 80 ([/b]); all of it: runs/a/results.json, b/results.json

runs/a and [/b], image by image (with 95% intervals)
PSNR (dB) ↑    [/b] better by 0.43 dB (0.37 to 0.50)
SSIM ↑         within chance: runs/a ahead by 0.0010 (-0.0020 to 0.0040), 29 of
               30 images
LPIPS (VGG) ↓  runs/a better by 0.0177 (0.0050 to 0.0300)"""


@pytest.fixture(autouse=True)
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def results(psnr: float, lpips: float, images: int, **protocol: object) -> Results:
    metrics = {"psnr": psnr, "lpips_vgg": lpips, "rfid": None, "frechet_vgg16": 12.5}
    rows = [MeasuredImage(str(i), (3, 8, 8), 0.0) for i in range(images)]
    few = {"frechet_vgg16": "unreliable below 2,048 images (30)"}
    return Results(metrics, {"rfid": "no weights of Inception"}, {**PROTOCOL, **protocol}, rows, few)


def test_the_screen_of_two_runs_and_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {
        "runs/a": results(24.567, 0.31234, 30, step=60, weights_sha256="a", latent="mode", precision="float32"),
        "[/b]": results(25.0, 0.33, 30, step=80, weights_sha256="b", latent="mode", precision="float32"),
        "jpeg": results(31.5, 0.05, 30, latent="a file of 0.4 bytes per pixel"),
    }
    found = {
        "psnr": PairedDifference(-0.433, -0.5, -0.366, 30),
        "lpips_vgg": PairedDifference(-0.01766, -0.03, -0.005, 30),
        "ssim": PairedDifference(0.001, -0.002, 0.004, 29),
    }
    print_metrics(columns)
    print_protocol(columns, [Path("runs/a/results.json"), Path("b/results.json")])
    print_comparisons("runs/a", {"[/b]": found}, 30)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(lines) == SCREEN


def test_one_image_of_one_codec(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"a": results(24.5, 0.3, 1, step=60, weights_sha256="a", latent="mode", left_out=0)}
    print_protocol(columns, [])
    print_comparisons("a", {}, 1)
    assert (
        capsys.readouterr().out
        == """
1 image of val, resize none, crop center 64, mode
protocol ldm_vae, step 60; --json FILE writes all of it
"""
    )
