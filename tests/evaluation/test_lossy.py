"""JPEG and WebP at a latent's bytes: the nearest of all qualities, what is said where none is near, real files."""

from __future__ import annotations

import io
from typing import get_args

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.errors import UserError
from ldm_vae.evaluation.lossy import QUALITIES, LossyCodec, LossyFormat


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """(1, 3, 58, 83), sides that are no multiple of anything."""
    pixels = torch.from_numpy(skimage.data.astronaut()[20:78, 180:263].copy())
    return pixels.permute(2, 0, 1)[None] / 127.5 - 1.0


def codec(kind: LossyFormat, numbers: int = 3, channels: int = 3) -> LossyCodec:
    return LossyCodec(kind, factor=4, numbers=numbers, channels=channels, device=torch.device("cpu"))


def file(image: Tensor, kind: LossyFormat, quality: int) -> bytes:
    written = io.BytesIO()
    Image.fromarray(to_uint8(image)[0].permute(1, 2, 0).numpy()).save(written, kind, quality=quality)
    return written.getvalue()


@pytest.mark.parametrize("kind", get_args(LossyFormat))
@pytest.mark.parametrize("numbers", [2, 3, 5])
def test_nearest_of_all_qualities(photograph: Tensor, kind: LossyFormat, numbers: int) -> None:
    """Found by trying all. Sizes grow with quality but for single bytes here and there: one quality beside is allowed,
    if its file is as near to 2 %."""
    budget = 2 * numbers * 15 * 21
    low, high = QUALITIES[kind]
    distances = {quality: abs(len(file(photograph, kind, quality)) - budget) for quality in range(low, high + 1)}
    (chosen,) = [len(row) for row in codec(kind, numbers).encode(photograph)]
    assert abs(chosen - budget) <= min(distances.values()) + 0.02 * budget
    assert low < min(distances, key=lambda quality: distances[quality]) < high  # there was a choice


@pytest.mark.parametrize("kind", get_args(LossyFormat))
def test_decodes_what_pillow_wrote(photograph: Tensor, kind: LossyFormat) -> None:
    """In a batch, where files are padded to the longest."""
    images = torch.cat([photograph, photograph.flip(3), torch.zeros_like(photograph)])
    pair = codec(kind)
    latents = pair.encode(images)
    assert latents.dtype == torch.uint8
    decoded = pair.decode(latents, size=(58, 83))
    data = latents[0].numpy().tobytes()
    quality = next(q for q in range(101) if data.startswith(file(photograph, kind, q)))
    expected = np.asarray(Image.open(io.BytesIO(file(photograph, kind, quality))).convert("RGB"))
    assert np.array_equal(to_uint8(decoded)[0].permute(1, 2, 0).numpy(), expected)
    assert (decoded[0] - images[0]).abs().mean() < 0.05
    assert (decoded[1] - images[1]).abs().mean() < 0.05


def test_protocol_tells_the_bytes(photograph: Tensor) -> None:
    pair = codec("jpeg")
    taken = pair.encode(photograph).shape[1]
    facts = pair.describe()
    per_pixel = [f"{count / (58 * 83):.4f}" for count in (taken, 2 * 3 * 15 * 21)]
    assert (
        facts["latent"]
        == f"a file of {per_pixel[0]} bytes per pixel; a latent of 16 bits per number takes {per_pixel[1]}"
    )
    assert "over_budget" not in facts and "under_budget" not in facts


def test_budgets_out_of_reach_are_said(photograph: Tensor) -> None:
    """A header alone is larger than a tiny latent; no JPEG is as large as a huge one."""
    small, large = LossyCodec("jpeg", factor=32, numbers=1, channels=3, device=torch.device("cpu")), codec("jpeg", 64)
    for pair in (small, large):
        pair.encode(photograph)
    assert small.describe()["over_budget"] == "1 of 1 images take more even at quality 1"
    assert large.describe()["under_budget"] == "1 of 1 images take less even at quality 100"


@pytest.mark.parametrize("kind", get_args(LossyFormat))
def test_grey(photograph: Tensor, kind: LossyFormat) -> None:
    grey = photograph[:, :1]
    pair = codec(kind, numbers=2, channels=1)
    decoded = pair.decode(pair.encode(grey), size=(58, 83))
    assert decoded.shape == grey.shape
    assert (decoded - grey).abs().mean() < 0.05
    with pytest.raises(UserError, match="4 channels"):
        codec(kind, channels=4)


def test_image_that_the_format_cannot_hold() -> None:
    with pytest.raises(UserError, match="webp cannot hold an image of 16384 x 1"):
        codec("webp").encode(torch.zeros(1, 3, 1, 16384))
