"""What is padded is cropped back, and nothing is cropped that nobody asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm_vae import LatentCodec, UserError
from ldm_vae.evaluation.averaging import PatchAveraging
from ldm_vae.evaluation.pca import fit_pca
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.padding import crop_to, pad_to_multiple

IMAGES = torch.rand(2, 3, 8, 8) * 2 - 1


def test_padding_reflects_and_repeats_where_it_cannot() -> None:
    row = torch.tensor([1.0, 2, 3, 4, 5]).view(1, 1, 1, 5)
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 4, 3, 2]
    assert pad_to_multiple(row, 8).shape == (1, 1, 8, 8)
    assert torch.equal(pad_to_multiple(row, 8)[0, 0, 7], pad_to_multiple(row, 8)[0, 0, 0])
    assert pad_to_multiple(row[..., :2], 8)[0, 0, 0].tolist() == [1, 2, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (IMAGES.shape, r"size \(2, 3, 8, 8\): give \(height, width\)"),
        ((8,), r"size \(8,\): give"),
        ([7.5, 8], r"size \(7.5, 8\): give"),
        (8, "a size of type int: give"),
        (IMAGES, "a size of type Tensor: give"),
    ],
    ids=["shape", "one", "fraction", "number", "images"],
)
def test_a_size_of_other_than_two_numbers_is_refused_in_a_line(size: Any, said: str) -> None:
    config = AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)
    codec = LatentCodec(Autoencoder(config).eval())
    pca, averaging = fit_pca([IMAGES], 4, 3), PatchAveraging(4, torch.device("cpu"))
    for decode, channels in ((codec.decode, 4), (codec.decode_raw, 4), (pca.decode, 3), (averaging.decode, 3)):
        latents = torch.zeros(2, channels, 2, 2)
        with pytest.raises(UserError, match=said) as refused:
            decode(latents, size=size)
        assert "\n" not in str(refused.value)
        assert decode(latents, size=(8, 8)).shape == IMAGES.shape


def test_cropping_undoes_padding() -> None:
    images = torch.rand(2, 3, 5, 7)
    assert torch.equal(crop_to(pad_to_multiple(images, 4), images.shape[2:]), images)
    with pytest.raises(UserError, match="8 x 8 at most"):
        crop_to(torch.zeros(1, 3, 8, 8), (9, 8))
