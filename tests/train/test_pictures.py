"""Pictures of a validation, value by value."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from train.pictures import GAIN, Shown, draw_channels, draw_sheet, pictures_for_trackers


def image(*values: float, channels: int = 3) -> Tensor:
    """(1, channels, 1, len(values)) in [-1, 1]."""
    return torch.tensor(values).expand(1, channels, 1, len(values))


def level(value: float) -> int:
    """[-1, 1] -> 0 to 255."""
    return round((value + 1) * 127.5)


def test_an_image_its_reconstruction_and_what_differs_stand_side_by_side() -> None:
    original, reconstruction = image(-1.0, 0.5, 1.0), image(-1.0, 0.4, 3.0)  # the last is clamped to 1
    ((name, picture),) = pictures_for_trackers([Shown(original, reconstruction, None)])
    assert name == "images/0"
    difference = round(GAIN * 0.1 / 2 * 255)
    row = [level(-1), level(0.5), level(1), level(-1), level(0.4), level(1), 0, difference, 0]
    assert np.asarray(picture).tolist() == [[[value] * 3 for value in row]]


def test_the_sheet_is_what_the_pictures_for_trackers_begin_with() -> None:
    shown = [Shown(torch.rand(1, 3, 4, width) * 2 - 1, torch.rand(1, 3, 4, width) * 2 - 1, None) for width in (5, 7)]
    sheet = np.asarray(draw_sheet(shown))
    assert sheet.shape == (8, 14, 3)
    for number, (_, picture) in enumerate(pictures_for_trackers(shown)):
        width = shown[number].original.shape[3]
        assert np.array_equal(np.asarray(picture)[:, : 2 * width], sheet[4 * number :][:4, : 2 * width])


def test_an_alpha_channel_does_not_hide_what_differs() -> None:
    (_, picture), *_ = pictures_for_trackers([Shown(image(1.0, channels=4), image(1.0, channels=4), None)])
    assert picture.mode == "RGB"


def test_other_channels_show_the_first_as_grey() -> None:
    shown = [Shown(image(0.0, channels=5), image(1.0, channels=5), None)]
    ((_, picture),) = pictures_for_trackers(shown)
    assert np.asarray(picture).tolist() == [[level(0), 255, 255]]
    assert np.asarray(draw_sheet(shown)).tolist() == [[level(0), 255]]


def test_latent_channels_are_grey_tiles_in_a_grid() -> None:
    latent = torch.stack([torch.tensor([[0.0, 4.0]]), torch.tensor([[-2.0, 1.0]]), torch.zeros(1, 2)])
    grid = np.asarray(draw_channels(latent))
    assert grid.shape == (64 + 1 + 64, 128 + 1 + 128)  # two columns of 128 x 64 pixels, a white line between them
    grey = level(0)
    tiles = {(0, 0): (grey, 255), (0, 1): (0, level(0.5)), (1, 0): (grey, grey), (1, 1): (255, 255)}  # the last: empty
    for (row, column), (left, right) in tiles.items():
        tile = grid[65 * row :][:64, 129 * column :][:, :128]
        assert (tile[:, :64] == left).all() and (tile[:, 64:] == right).all()
    assert (grid[64] == 255).all() and (grid[:, 128] == 255).all()


def test_a_large_latent_keeps_its_size() -> None:
    assert draw_channels(torch.randn(1, 200, 150)).size == (150, 200)
