"""The scenes. FOLDER has a recipe, tiny.yaml, and shards. Later scenes use what earlier ones leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from ldm_vae.choices import MetricName
from ldm_vae.codec import LatentCodec
from ldm_vae.errors import UserError
from ldm_vae.metrics.image import ImageMetrics
from ldm_vae.metrics.pixels import ImagePairs, Rounding
from ldm_vae.recipe import load_recipe
from tests.cli.commands import command
from train.recipe import Recipe
from train.run import run_training
from train.trial import check_trains

TRAINED = ("checkpoint.every=3", "log.every=2")  # so that a checkpoint holds sums of the meter


def train(folder: Path) -> None:
    """To the end; and again from the middle, as a killed run goes on."""
    recipe = load_recipe(Recipe, folder / "tiny.yaml", TRAINED)
    run_training(recipe)
    log = Path(recipe.output, "metrics.jsonl")
    whole = log.read_text()
    shutil.rmtree(Path(recipe.output, "checkpoints", "step_00000006"))
    run_training(recipe)
    first, second = ([_without_times(line) for line in text.splitlines()] for text in (whole, log.read_text()))
    assert first == second


def float64_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"precision: float64 on gpu, which has none: set precision=float32"):
        run_training(load_recipe(Recipe, folder / "tiny.yaml", ["precision=float64", f"output={folder / 'other'}"]))
    with pytest.raises(UserError, match=r"float64 on gpu.*, which has none: take float32"):
        LatentCodec.load(folder / "run", dtype="float64")


def trial(folder: Path) -> None:
    check_trains(torch.device("gpu"))


def codec(folder: Path) -> None:
    """Pictures in float64, whole and in pieces."""
    codec = LatentCodec.load(folder / "run")
    assert codec.device.type == "gpu"
    images = torch.linspace(-1, 1, 3 * 96 * 64, dtype=torch.float64).reshape(1, 3, 96, 64)
    latents = codec.encode(images)
    pieces = codec.decode(latents, max_memory=2**20)
    # the order of sums, in float32
    torch.testing.assert_close(pieces.cpu(), codec.decode(latents).cpu(), rtol=0, atol=1e-5)


def stats(folder: Path) -> None:
    _run("stats", folder / "run", folder / "shards" / "train", "--write", "--json", folder / "stats.json")


def evaluate(folder: Path) -> None:
    baselines = ("--baseline", f"pca={folder / 'shards' / 'train'}", "--baseline", "jpeg")
    metrics = ("--metrics", "psnr,ssim,lpips_alex")
    _run("evaluate", folder / "run", folder / "shards" / "validation", *metrics, *baselines)


def metrics_of_published_protocols(folder: Path) -> None:
    """Without their networks, which take a minute."""
    image, reconstruction = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 1, 3, 16, 16).to("gpu")
    for rounding in get_args(Rounding):
        names: tuple[MetricName, ...] = ("psnr", "ssim_signed", "ssim_uniform")
        measure = ImageMetrics(names, "gpu", rounding=dict.fromkeys(names, rounding))
        assert measure(ImagePairs(reconstruction, image), ["a"])[0].values.keys() == set(names)


def inspect(folder: Path) -> None:
    _run("inspect", folder / "run", folder / "shards" / "train", "--against", folder / "shards" / "validation")


def encode(folder: Path) -> None:
    _run("encode", folder / "run", folder / "shards" / "train", folder / "latents", "--mirrored")


def decode(folder: Path) -> None:
    _run("decode", folder / "run", folder / "latents", folder / "pictures", "--count", 2)


def roundtrip(folder: Path) -> None:
    _run("roundtrip", folder / "run", folder / "latents", folder / "shards" / "train", "--images", 2)


def _run(*words: object) -> None:
    assert command(*words) == 0


def _without_times(line: str) -> dict[str, float]:
    return {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}


SCENES: tuple[Callable[[Path], None], ...] = (
    *(train, float64_is_refused, trial, codec, stats, evaluate, metrics_of_published_protocols, inspect),
    *(encode, decode, roundtrip),
)
