"""A small model of the family, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.train import seams

FAMILY = (
    "model={kind: mlp, side: 32, in_channels: 3, out_channels: 3, latent_channels: 4, widths: [16]}",
    "loss={pixel: {weight: 0}, perceptual: {weight: 0}, likelihood: {weight: 1}, rate: {weight: 1}}",
    "discriminator=null",
    "validation={every: 3, batch: 2, pictures: 2, crop: 32}",
)


@pytest.fixture(scope="session")
def family_run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The run of a vector VAE of colour pictures of 32 x 32."""
    folder = tmp_path_factory.mktemp("family")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY.format(output=folder / "run", shards=shards))
    seams.train_here(recipe, folder / "run", *FAMILY)
    return folder / "run"


@pytest.fixture
def family() -> tuple[str, ...]:
    """What makes the tiny recipe one of the family."""
    return FAMILY
