"""Paths and samples in latent space against their definitions, and the pictures made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.diagnostics.channels import ChannelSums
from ldm_vae.diagnostics.explore import explore, lerp, principal_directions, random_phase, slerp
from ldm_vae.diagnostics.probes import Probes
from tests.diagnostics.conftest import averaging, pictures

pytestmark = pytest.mark.numerical

Make = Callable[[LatentCodec, Tensor], Probes]


def test_the_great_circle() -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = torch.tensor(t * torch.pi / 2)
        torch.testing.assert_close(slerp(a, b, t), 3 * torch.stack([angle.cos(), angle.sin()]))
    torch.testing.assert_close(lerp(a, b, 0.5), torch.tensor([1.5, 1.5]))
    for parallel in (2 * a, -a):
        torch.testing.assert_close(slerp(a, parallel, 0.3), lerp(a, parallel, 0.3))
    assert slerp(torch.zeros(2), a, 0.5).isfinite().all()


def test_principal_directions_are_those_of_the_data() -> None:
    root = np.random.default_rng(0).normal(size=(3, 3))
    values = np.random.default_rng(1).normal(size=(5000, 3)) @ root
    deviations, directions = principal_directions(np.cov(values, rowvar=False))
    _, singular, theirs = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(deviations, singular / np.sqrt(4999))
    np.testing.assert_allclose(np.abs(directions @ theirs.T), np.eye(3), atol=1e-9)


def test_a_random_field_has_the_covariance_of_its_latents() -> None:
    """Channel by channel at one position, and between neighbours; over 3000 draws of 64 positions."""
    z = torch.nn.functional.interpolate(
        torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)), size=(8, 8)
    )
    window = torch.outer(torch.hann_window(8), torch.hann_window(8))
    seen = (z * window / window.square().mean().sqrt()).double()
    draws = random_phase(z, 3000, seed=0).double()
    assert draws.mean(dim=(0, 2, 3)).abs().max() < 0.02
    for shift in (0, 1, 2):
        expected = torch.einsum("nchw,ndhw->cd", seen, seen.roll(shift, dims=3)) / (2 * 64)
        found = torch.einsum("nchw,ndhw->cd", draws, draws.roll(shift, dims=3)) / (3000 * 64)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(seen.square().mean()))


def explored(codec: LatentCodec, images: Tensor, probes_of: Make, folder: Path) -> tuple[list[str], list[str]]:
    probes = probes_of(codec, images)
    sums = ChannelSums(probes.z.shape[1])
    sums.update(probes.z, torch.full_like(probes.z, -6.0), 1)
    section = explore(codec, probes, probes, sums, folder, seed=0)
    assert {picture.file for picture in section.pictures} == {path.name for path in folder.iterdir()}
    assert all(len(picture.description) > 50 for picture in section.pictures)
    return [picture.name for picture in section.pictures], [verdict.name for verdict in section.verdicts]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_picture_is_made(probes_of: Make, tmp_path: Path, channels: int) -> None:
    images = pictures(3, channels=channels)
    names, verdicts = explored(averaging(channels), images, probes_of, tmp_path)
    assert names == ["interpolation", "traversal", "grid", "samples"]
    assert verdicts == []
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2e6
    sheet = np.asarray(Image.open(tmp_path / "interpolation.png"))
    ends = [to_uint8(averaging(channels).reconstruct(images[i : i + 1]))[0, 0] for i in (0, 1)]
    for row in range(2):  # linear and spherical begin with one image and end with the other
        top = sheet.shape[0] - 64 - (1 - row) * 67
        np.testing.assert_array_equal(sheet[top : top + 64, -64:, 0], ends[1])
        left = sheet.shape[1] - 64 - 6 * 67
        assert np.abs(sheet[top : top + 64, left : left + 64, 0].astype(int) - ends[0].numpy()).max() <= 1
    traversal, grid = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("traversal", "grid"))
    left = traversal.shape[1] - 64 - 2 * 67
    assert np.abs(traversal[-64:, left : left + 64, 0].astype(int) - ends[0].numpy()).max() <= 1  # the middle tile
    left = grid.shape[1] - 64 - 2 * 67
    top = grid.shape[0] - 64 - (2 * 67 if channels > 1 else 0)
    assert np.abs(grid[top : top + 64, left : left + 64, 0].astype(int) - ends[0].numpy()).max() <= 1


def tile(sheet: np.ndarray, up: int, left: int) -> Tensor:
    """(3, 64, 64) in [-1, 1], so many tiles from the lower right corner of a mosaic."""
    bottom, right = sheet.shape[0] - 67 * up, sheet.shape[1] - 67 * left
    return torch.from_numpy(sheet[bottom - 64 : bottom, right - 64 : right] / 127.5 - 1.0).permute(2, 0, 1)


def test_traversals_and_samples_have_the_deviations_of_the_latents(probes_of: Make, tmp_path: Path) -> None:
    """The decoder is linear, so a tile is the picture plus the direction times its deviation, both by SVD."""
    codec, images = averaging(), 0.3 * pictures(3)  # far from -1 and 1, where pictures are clamped
    explored(codec, images, probes_of, tmp_path)
    z = codec.draw(codec.moments(images)).double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    _, singular, directions = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    deviations = singular / np.sqrt(len(z))
    sheet = np.asarray(Image.open(tmp_path / "traversal.png"))
    for direction in range(3):
        middle, last = (tile(sheet, 2 - direction, left) for left in (2, 0))
        moved = (last - middle).mean(dim=(1, 2)).numpy()
        expected = 2 * deviations[direction] * directions[direction]
        # a step of 8 bits is 0.008, of which the mean over rounded pixels is a small part
        assert min(np.abs(moved - expected).max(), np.abs(moved + expected).max()) < 2e-3
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    for direction, place in enumerate(((2, 0), (4, 2))):  # the second direction grows upwards
        moved = (tile(sheet, *place) - tile(sheet, 2, 2)).mean(dim=(1, 2)).numpy()
        expected = 2 * deviations[direction] * directions[direction]
        assert min(np.abs(moved - expected).max(), np.abs(moved + expected).max()) < 2e-3
    sheet = np.asarray(Image.open(tmp_path / "samples.png"))
    fitted = torch.stack([tile(sheet, 1, left) for left in range(6)])
    drawn = torch.nn.functional.avg_pool2d(fitted, 4).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    # 1536 draws: a variance errs by sqrt(2 / 1536) = 3.6 % of itself, a covariance by no more
    covariance = np.cov(z, rowvar=False, ddof=0)
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), covariance, atol=0.15 * covariance.max())


def test_what_cannot_be_shown_is_said(probes_of: Make, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert explored(averaging(), pictures(1), probes_of, tmp_path / "one") == (
        ["traversal", "grid", "samples"],
        ["interpolation"],
    )
    (tmp_path / "four").mkdir()
    assert explored(averaging(4), pictures(2, channels=4), probes_of, tmp_path / "four") == ([], ["pictures"])
