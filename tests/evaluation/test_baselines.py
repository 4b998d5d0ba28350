"""Names of baselines -> codecs of the first model's rate; what PCA is fitted on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import SourceConfig, load_index
from ldm_vae.data.stream.reader import DataConfig, validation_batches
from ldm_vae.errors import UserError
from ldm_vae.evaluation import baselines as choose
from ldm_vae.evaluation.baselines import choose_baseline
from ldm_vae.evaluation.lossy import LossyCodec
from ldm_vae.evaluation.pca import PatchPCA, fit_pca
from ldm_vae.interop.load import ModelSource
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig


def codec(folder: Path | None = None) -> LatentCodec:
    """f2, 3 numbers a position."""
    config = AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_groups=4, latent_channels=3)
    return LatentCodec(Autoencoder(config).eval(), source=ModelSource("a run", "run", folder))


def test_rates_are_those_of_the_model(shards: Path) -> None:
    jpeg = choose_baseline("jpeg", codec(), ImageConfig())
    assert isinstance(jpeg, LossyCodec)
    assert (jpeg.factor, jpeg.numbers) == (2, 3)
    pca = choose_baseline(f"pca={shards / 'train'}", codec(), ImageConfig())
    assert isinstance(pca, PatchPCA)
    assert pca.encode(torch.zeros(1, 3, 10, 12)).shape == (1, 3, 5, 6)


@pytest.mark.parametrize("listed", [False, True])
def test_pca_is_fitted_on_what_the_run_was_trained_on(shards: Path, tmp_path: Path, listed: bool) -> None:
    """On every image, where there are few, prepared as those of the comparison."""
    train = f"[{{shards: {shards}/train, weight: 2}}]" if listed else f"{shards}/train"
    (tmp_path / "recipe.yaml").write_text(f"data: {{train: {train}, batch: 4}}\n")
    image = ImageConfig(crop=32)
    found = choose_baseline("pca", codec(tmp_path), image)
    data = DataConfig(train=(SourceConfig(shards=str(shards / "train")),), batch=1, workers=0, image=image)
    batches = validation_batches(data, load_index(str(shards / "train")), batch=1, rank=0, world=1)
    expected = fit_pca((batch.image for batch in batches), 2, 3)
    assert isinstance(found, PatchPCA)
    assert torch.equal(found.components, expected.components)
    assert found.images == 23 and "23 images" in found.describe()["codec"]


def test_of_many_images_some_are_taken(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "FIT_IMAGES", 10)
    found = choose_baseline(f"pca={shards / 'train'}", codec(), ImageConfig())
    assert isinstance(found, PatchPCA)
    assert found.images == 12  # every second of 23


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose pca"):
        choose_baseline("png", codec(), ImageConfig())
    with pytest.raises(UserError, match=r"no recipe says what a run was trained on.*--baseline pca=SHARDS"):
        choose_baseline("pca", codec(), ImageConfig())
    (tmp_path / "recipe.yaml").write_text("steps: 3\n")
    with pytest.raises(UserError, match=r"no recipe says what.*--baseline pca=SHARDS"):
        choose_baseline("pca", codec(tmp_path), ImageConfig())
    (tmp_path / "recipe.yaml").write_text(f"data: {{train: {tmp_path}/gone, batch: 4}}\n")
    with pytest.raises(UserError, match=r"gone.*--baseline pca=SHARDS"):
        choose_baseline("pca", codec(tmp_path), ImageConfig())
