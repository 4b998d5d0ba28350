"""Wherever a command takes SHARDS, it takes a folder of images, and does the same with it as with shards of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm_vae import LatentDataset
from tests.cli.commands import command
from tests.conftest import encoded, picture
from tests.train.runs import rows, run_in_process

Numbers = dict[str, Any]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nine pictures in two subfolders, one of them with a text beside it."""
    for number in range(9):
        path = tmp_path / "images" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    (tmp_path / "images" / "0" / "0.txt").write_text("the first")
    return tmp_path / "images"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def by_stats(run: Path, shards: Path, folder: Path) -> Numbers:
    assert command("stats", run, shards, "--json", folder / "stats.json") == 0
    statistics = read_json(folder / "stats.json")
    return {"mean": statistics["channel_mean"], "std": statistics["channel_std"]}


def by_export(run: Path, shards: Path, folder: Path) -> Numbers:
    assert command("export", run, folder / "export", "--shards", shards) == 0
    return {"scale": read_json(folder / "export" / "config.json")["scaling_factor"]}


def by_evaluate(run: Path, shards: Path, folder: Path) -> Numbers:
    assert command("evaluate", run, shards, "--metrics", "psnr", "--json", folder / "results.json") == 0
    return {row["key"]: row["values"]["psnr"] for row in read_json(folder / "results.json")["per_image"]}


def by_inspect(run: Path, shards: Path, folder: Path) -> Numbers:
    assert command("inspect", run, shards, "--output", folder / "inspection") == 0
    with (folder / "inspection" / "scores.csv").open(newline="") as file:
        return {row["key"]: float(row["squared_error"]) for row in csv.DictReader(file)}


def by_encode(run: Path, shards: Path, folder: Path) -> Numbers:
    assert command("encode", run, shards, folder / "latents") == 0
    assert command("check", folder / "latents", "--source", shards) == 0
    dataset = LatentDataset(folder / "latents")
    return {dataset.key(i): dataset.raw(i).mean().item() for i in range(len(dataset))}


def by_check(run: Path, shards: Path, folder: Path) -> Numbers:
    assert command("check", shards, "--decode", "--json", folder / "check.json") == 0
    return {"samples": read_json(folder / "check.json")["samples"]}


def by_report(run: Path, shards: Path, folder: Path) -> Numbers:
    assert command("report", run, "--shards", shards, "--output", folder / "report.html") == 0
    return {"pictures": (folder / "report.html").read_text().count("data:image/png") > 0}


COMMANDS: tuple[Callable[[Path, Path, Path], Numbers], ...] = (
    by_stats, by_export, by_evaluate, by_inspect, by_encode, by_check, by_report,
)  # fmt: skip


@pytest.mark.parametrize("work", COMMANDS, ids=lambda work: work.__name__.removeprefix("by_"))
def test_a_folder_of_images_gives_what_shards_of_them_give(
    run: Path, images: Path, tmp_path: Path, work: Callable[[Path, Path, Path], Numbers]
) -> None:
    assert command("shards", images, tmp_path / "packed", "--no-classes") == 0
    found = []
    for name, shards in (("folder", images), ("tars", tmp_path / "packed")):
        (tmp_path / name).mkdir()
        found.append(work(run, shards, tmp_path / name))
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():  # float32 sums in another order, as batches hold other images
        np.testing.assert_allclose(value, found[1][key], rtol=1e-3, atol=1e-4)


def test_training_takes_folders_of_images(recipe: Path, images: Path, tmp_path: Path) -> None:
    places = (f"data.train={images}", f"data.validation={images}")
    run_in_process(recipe, *places, "steps=2", "validation.every=2", "loss.perceptual.weight=0")
    assert rows(tmp_path / "run")[-1]["validation/images"] == 9


def test_check_names_what_is_wrong_in_a_folder_of_images(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "1" / "cut.png").write_bytes(encoded(picture(0))[:200])
    report = tmp_path / "report.json"
    assert command("check", images, "--decode", "--json", report) == 1
    (problem,) = read_json(report)["problems"]
    assert problem["member"] == "1/cut.png" and "the file ends" in problem["reason"]
    assert "1 shard, 9 samples to use" in capsys.readouterr().out
    assert command("check", images, "--write-index") == 2
    assert "`ldm-vae shards` makes them of images" in capsys.readouterr().err
    assert not (images / "index.json").exists()
