"""`ldm-vae sample`: pictures that are the model's own draws, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.cli.app import main
from ldm_vae.family.model import load
from ldm_vae.family.networks.mlp import Mlp, MlpConfig
from ldm_vae.images import to_uint8
from ldm_vae.interop.checkpoint import Checkpoint

CONFIG = MlpConfig(side=12, in_channels=3, out_channels=3, latent_channels=4, widths=(8,))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run of the family with one checkpoint."""
    torch.manual_seed(0)
    states = {"model": Mlp(CONFIG).state_dict(), "ema": Mlp(CONFIG).state_dict()}
    folder = tmp_path / "model"
    meta = {"step": 7, "model": CONFIG.model_dump(mode="json")}
    Checkpoint.write(folder / "checkpoints" / "step_00000007", states, meta)
    return folder


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_pictures_are_the_models_draws(model: Path, tmp_path: Path) -> None:
    assert command("sample", model, tmp_path / "few", "--count", 3, "--seed", 5) == 0
    assert command("sample", model, tmp_path / "many", "--count", 300, "--seed", 5, "--temperature", 1) == 0
    few, many = pictures(tmp_path / "few"), pictures(tmp_path / "many")
    assert few.shape == (3, 12, 12, 3) and many.shape == (300, 12, 12, 3)
    expected = to_uint8(load(model, device="cpu").sample(300, seed=5)).permute(0, 2, 3, 1)
    assert np.abs(many.astype(int) - np.asarray(expected)).max() <= 1  # a batch of another size sums in another order
    assert np.abs(few.astype(int) - many[:3]).max() <= 1
    assert len(np.unique(many.reshape(300, -1), axis=0)) == 300


def test_a_codec_is_refused_and_nothing_is_replaced(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("sample", run, tmp_path / "out") == 2
    assert "whose latents follow no prior" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.png").write_text("mine")
    assert command("sample", model, tmp_path / "mine") == 2
    assert "000000.png, which would be lost" in capsys.readouterr().err
    assert (tmp_path / "mine" / "000000.png").read_text() == "mine" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", ["evaluate MODEL SHARDS", "export MODEL OUT", "encode MODEL SHARDS OUT", "stats MODEL SHARDS"]
)
def test_commands_of_codecs_refuse_it(
    words: str, model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": model, "SHARDS": shards, "OUT": tmp_path / "out"}
    assert command(*(places.get(word, word) for word in words.split())) == 2
    assert "a network of kind mlp" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
