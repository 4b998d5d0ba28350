"""The worked example end to end: what it trains on, what it saves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline
from PIL import Image

from ldm_vae.cli.app import main as ldm_vae
from ldm_vae.codec import LatentCodec, from_pil
from ldm_vae.latents.dataset import LatentDataset
from tests.conftest import encoded, picture, write_tar
from tests.tools.codecs import write_codec
from tools.command import run_command
from tools.latent_diffusion import crop, crops, latent_diffusion

TINY = ["--side", "8", "--tokens", "4", "--width", "32", "--depth", "1", "--steps", "3", "--batch", "4"]
FACTOR = 2


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codec(tmp_path_factory.mktemp("codec") / "export")


@pytest.fixture(scope="module")
def latents(codec: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "train"
    with pytest.raises(SystemExit, match="0"):
        ldm_vae(["encode", str(codec), str(shards / "train"), str(folder), "--mirrored"])
    return folder


def run(*arguments: str | Path) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        run_command(latent_diffusion, [str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_pipeline_comes_out_and_is_the_same_again(codec: Path, latents: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert run(codec, latents, tmp_path / name, *TINY, "--per-class", "2") == 0
    pipe: Any = DiTPipeline.from_pretrained(tmp_path / "first" / "pipeline")
    assert pipe.labels == {"0": 0, "1": 1, "2": 2}
    assert pipe.vae.config.scaling_factor == 0.6
    kept = [json.loads((tmp_path / name / "losses.json").read_text())["losses"] for name in ("first", "second")]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 3
    sheets = [(tmp_path / name / "samples.png").read_bytes() for name in ("first", "second")]
    assert sheets[0] == sheets[1]
    with Image.open(tmp_path / "first" / "samples.png") as sheet:
        assert sheet.size == (3 * (FACTOR * 8 + 2) + 2, 3 * (FACTOR * 8 + 2) + 2)  # three classes, data and two samples
    # The saved network is the trained one: the layer that starts at 0 has moved.
    assert pipe.transformer.proj_out_2.weight.abs().max() > 0
    # A second run replaces the pipeline, but nothing that a person put there.
    assert run(codec, latents, tmp_path / "first", *TINY, "--per-class", "2") == 0
    (tmp_path / "first" / "pipeline" / "vae" / "notes.txt").write_text("ours")
    assert run(codec, latents, tmp_path / "first", *TINY, "--per-class", "2") == 2
    assert (tmp_path / "first" / "pipeline" / "vae" / "notes.txt").read_text() == "ours"


def test_it_trains_on_what_the_codec_decodes(codec: Path, latents: Path) -> None:
    """Crops of the scaled latents of the pictures, to half precision of numbers up to 4."""
    loaded = LatentCodec.load(codec, device="cpu")
    dataset = LatentDataset(latents, codec=loaded, sample=False, mirror=False)
    expected = loaded.encode(from_pil(picture(int(dataset.key(5)))))[0]
    rows, columns = expected.shape[1:]
    found = crop(dataset, 5, 8, 0.999, 0.0)
    torch.testing.assert_close(found, expected[:, rows - 8 :, :8], rtol=0, atol=2e-3)
    assert crop(dataset, 5, rows, 0.0, 0.999).shape == (3, rows, rows) and columns > rows

    generated = crops(dataset, [int(dataset.fields(i)["cls"]) for i in range(len(dataset))], 8, 16, 0)
    batch, labels = next(generated)
    assert batch.shape == (16, 3, 8, 8) and set(labels.tolist()) == {0, 1, 2}
    assert not torch.equal(next(generated)[0], batch)


def test_the_scale_is_that_of_the_pipeline(
    codec: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that was measured again after encoding has another scale: the network must be trained on that one."""
    seen: list[torch.Tensor] = []

    def watched(model: Any, batches: Any, config: Any, done: Any) -> list[float]:
        seen.append(next(batches)[0])
        return [1.0]

    monkeypatch.setattr("tools.latent_diffusion.train_denoiser", watched)
    for factor in (0.6, 1.2):
        folder = write_codec(tmp_path / str(factor), scaling_factor=factor)
        assert run(folder, latents, tmp_path / f"out {factor}", *TINY) == 0
    torch.testing.assert_close(seen[1], 2 * seen[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"seed": 1}, [], "are of another codec"),
        ({"shift_factor": 0.1}, [], "DiTPipeline passes over the shift"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, [], "statistics per channel not at all"),
        ({}, ["--side", "9"], "side 9 are not divisible into 4 patches"),
        ({}, ["--side", "24"], "smaller than 24: give a smaller --side"),
    ],
)
def test_bad_input_is_told_in_a_line_and_leaves_nothing(
    change: dict[str, Any],
    options: list[str],
    message: str,
    latents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_codec(tmp_path / "codec", **change)
    assert run(folder, latents, tmp_path / "out", *TINY, *options) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_samples_without_class_need_another_choice(
    codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(2):
        picture(seed).save(tmp_path / "images" / f"{seed}.png")
    with pytest.raises(SystemExit, match="0"):
        ldm_vae(["encode", str(codec), str(tmp_path / "images"), str(tmp_path / "latents")])
    assert run(codec, tmp_path / "latents", tmp_path / "out", *TINY) == 2
    assert "sample 0 has no cls: give --classes picture" in capsys.readouterr().err
    assert run(codec, tmp_path / "latents", tmp_path / "out", *TINY, "--classes", "picture") == 0
    pipe: Any = DiTPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    assert pipe.get_label_ids(["1"]) == [1]
    assert run(codec, tmp_path / "latents", tmp_path / "out", *TINY, "--classes", "none") == 0


@pytest.mark.parametrize("label", [-1, 1000])
def test_classes_that_the_pipeline_does_not_know_are_refused(
    codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], label: int
) -> None:
    members = {f"{key}.png": encoded(picture(key)) for key in range(2)} | {"0.cls": b"5", "1.cls": str(label).encode()}
    write_tar(tmp_path / "images" / "0.tar", dict(sorted(members.items())))
    with pytest.raises(SystemExit, match="0"):
        ldm_vae(["encode", str(codec), str(tmp_path / "images"), str(tmp_path / "latents")])
    assert run(codec, tmp_path / "latents", tmp_path / "out", *TINY) == 2
    assert "DiTPipeline knows 0 to 999" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
