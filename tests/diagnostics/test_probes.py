"""Probes: cut from the middle, of one size, without what does not decode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec, NonFiniteError
from ldm_vae.diagnostics.probes import (
    Probes,
    cut_probe,
    cut_view,
    decode_in_batches,
    decode_whole,
    make_probes,
    mean_psnr,
    probe_side,
)
from tests.diagnostics.conftest import Averaging, pictures

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(("factor", "side"), [(1, 128), (4, 128), (8, 128), (16, 128), (32, 256)])
def test_sides_hold_whole_quarters_of_eight_positions(factor: int, side: int) -> None:
    assert probe_side(factor) == side


def test_the_middle_is_cut() -> None:
    rows = torch.arange(200.0)[:, None].expand(200, 150)[None]
    cut = cut_probe(rows, 4)
    assert cut is not None
    assert cut.shape == (1, 128, 128)
    assert cut[0, [0, -1], 0].tolist() == [36, 163]
    small = cut_probe(torch.zeros(1, 50, 300), 4)
    assert small is not None
    assert small.shape == (1, 48, 48)
    assert cut_probe(torch.zeros(1, 15, 300), 4) is None


def test_a_view_shows_the_whole_middle_square() -> None:
    image = torch.linspace(-1, 1, 300)[None, :, None].expand(3, 300, 400)
    view = cut_view(image, 4)
    assert view is not None
    assert view.shape == (3, 128, 128)
    expected = (torch.arange(128) + 0.5) * 300 / 128 / 300 * 2 - 1
    torch.testing.assert_close(view[0, 2:-2, 5], expected[2:-2], rtol=0, atol=1e-2)  # the filter bends the ends
    assert cut_view(torch.zeros(3, 15, 300), 4) is None


def test_the_spread_of_images_is_around_the_mean_of_each_channel() -> None:
    """Flat images of brightness -0.5 and 0.5 vary by 0.5; channels that differ and never change do not vary."""
    grey = torch.tensor([-0.5, 0.5])[:, None, None, None].expand(2, 3, 8, 8)
    assert Probes(grey, grey, grey, 1.0).spread == pytest.approx(0.5)
    coloured = torch.tensor([-0.5, 0.0, 0.5])[None, :, None, None].expand(2, 3, 8, 8)
    assert Probes(coloured, coloured, coloured, 1.0).spread == 0


class Spoiled(Averaging):
    """Bright pictures become NaN."""

    def decode(self, z: Tensor) -> Tensor:
        image = super().decode(z)
        image[image.mean(dim=(1, 2, 3)) > 0.7] = torch.nan
        return image


def test_what_is_not_finite_is_left_out(codec: LatentCodec) -> None:
    spoiled = LatentCodec(Spoiled(3, [1.0] * 3, -6.0).eval().requires_grad_(False))
    white = torch.full((1, 3, 64, 64), 0.9)
    images = torch.cat([pictures(1), white, pictures(1, seed=1)])
    places, found = decode_whole(spoiled, spoiled.draw(spoiled.moments(images)))
    assert places == [0, 2]
    torch.testing.assert_close(found, codec.reconstruct(images[[0, 2]]))
    probes = make_probes(spoiled, [*images[:2], *[images[2, :, 8:56, 8:56]] * 2], 1.0)
    assert probes is not None
    assert probes.image.shape == (3, 3, 48, 48)
    torch.testing.assert_close(probes.image[0], images[0, :, 8:56, 8:56])
    assert make_probes(spoiled, [white[0]], 1.0) is None
    assert make_probes(spoiled, [], 1.0) is None
    with pytest.raises(NonFiniteError):
        decode_in_batches(spoiled, white[:, :, :8, :8])


def test_a_tiny_image_among_large_ones_is_left_out(codec: LatentCodec) -> None:
    """With it, all diagnostics of the others would be about 16 x 16 pixels."""
    large = [*pictures(3), pictures(1, side=48)[0]]
    probes = make_probes(codec, [pictures(1, side=16)[0], *large], 1.0)
    assert probes is not None
    assert probes.image.shape == (3, 3, 64, 64)
    pair = make_probes(codec, [pictures(1, side=16)[0], large[0]], 1.0)
    assert pair is not None
    assert pair.image.shape == (2, 3, 16, 16)  # half of two have each side: both are kept


def test_a_mean_colour_is_no_reconstruction() -> None:
    images = pictures(2)
    z = torch.zeros(2, 3, 16, 16)
    colour = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    assert Probes(images, z, colour, 1.0).blank
    assert Probes(images, z, torch.zeros_like(images), 1.0).blank
    assert not Probes(images, z, 0.9 * colour + 0.1 * images, 1.0).blank
    assert not Probes(colour, z, colour, 1.0).blank  # flat images, reconstructed


def test_psnr_is_the_mean_of_images() -> None:
    steps = torch.full((2, 1, 4, 4), 100.0)  # of 8 bits
    off = steps + torch.tensor([10.0, 1.0]).view(2, 1, 1, 1)
    image = steps / 127.5 - 1
    expected = (20 * torch.log10(torch.tensor([25.5, 255.0]))).mean()
    assert mean_psnr(off / 127.5 - 1, image) == pytest.approx(float(expected))
    assert mean_psnr(image, image) == float("inf")
