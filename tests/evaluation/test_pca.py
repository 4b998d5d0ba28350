"""The linear codec against scikit-learn's PCA, and what makes it the best linear one of its shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from sklearn.decomposition import PCA
from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.evaluation.pca import fit_pca
from tests.tolerance import roundings

pytestmark = pytest.mark.numerical


@pytest.fixture
def images() -> list[Tensor]:
    """Smooth pictures of two sizes, (1, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.rand(1, 3, 6, 7, generator=generator) * 2 - 1 for _ in range(6)]
    sizes = [(32, 40), (24, 48)]
    return [
        torch.nn.functional.interpolate(image, size=sizes[i % 2], mode="bicubic").clamp(-1, 1)
        for i, image in enumerate(coarse)
    ]


def test_equals_scikit_learn(images: list[Tensor]) -> None:
    """In float64; ours become float32 for coding, through two products over 48 numbers: some tens of roundings."""
    patches = torch.cat([rearrange(x, "b c (h p) (w q) -> (b h w) (c p q)", p=4, q=4) for x in images]).double()
    theirs = PCA(n_components=5, svd_solver="full").fit(patches.numpy())
    expected = torch.from_numpy(theirs.inverse_transform(theirs.transform(patches.numpy()))).float()
    codec = fit_pca(iter(images), factor=4, components=5)
    found = torch.cat(
        [
            rearrange(
                codec.decode(codec.encode(x), size=(x.shape[2], x.shape[3])),
                "b c (h p) (w q) -> (b h w) (c p q)",
                p=4,
                q=4,
            )
            for x in images
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=roundings(expected, 100))


def test_rate_is_that_of_a_latent(images: list[Tensor]) -> None:
    latents = fit_pca(images, factor=4, components=3).encode(images[0])
    assert latents.shape == (1, 3, 8, 10)


def test_all_components_lose_nothing(images: list[Tensor]) -> None:
    """Also at sizes that are no multiple of f, for which the last row and column are repeated."""
    codec = fit_pca(images, factor=4, components=48)
    odd = images[0][..., :29, :38]
    decoded = codec.decode(codec.encode(odd), size=(29, 38))
    torch.testing.assert_close(decoded, odd, rtol=0, atol=roundings(odd, 100))  # two float32 products over 48 numbers
    padded = torch.from_numpy(np.pad(odd.numpy(), ((0, 0), (0, 0), (0, 3), (0, 2)), mode="edge"))
    torch.testing.assert_close(codec.encode(odd), codec.encode(padded))


def test_nothing_to_be_fitted_on() -> None:
    with pytest.raises(UserError, match="no image to be fitted on"):
        fit_pca(iter(()), factor=4, components=2)
