"""Averages of patches against sums over every patch, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_vae.evaluation.averaging import PatchAveraging

pytestmark = pytest.mark.numerical


def by_hand(image: np.ndarray, factor: int) -> np.ndarray:
    """(C, H, W) -> the same shape, in float64: each patch filled with its mean colour."""
    result = np.empty_like(image, dtype=np.float64)
    for top in range(0, image.shape[1], factor):
        for left in range(0, image.shape[2], factor):
            patch = image[:, top : top + factor, left : left + factor].astype(np.float64)
            result[:, top : top + factor, left : left + factor] = patch.mean(axis=(1, 2), keepdims=True)
    return result


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(16, 24), (17, 23), (3, 30), (5, 1)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_equals_means_by_hand(factor: int, size: tuple[int, int], channels: int) -> None:
    """Also where the last patches are cut. A mean of at most 64 values in [-1, 1] errs by some roundings of 1."""
    images = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec = PatchAveraging(factor, torch.device("cpu"))
    latents = codec.encode(images)
    assert latents.shape == (2, channels, -(-size[0] // factor), -(-size[1] // factor))
    found: Tensor = codec.decode(latents, size=size)
    expected = np.stack([by_hand(image, factor) for image in images.numpy()])
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=64 * float(np.finfo(np.float32).eps))
