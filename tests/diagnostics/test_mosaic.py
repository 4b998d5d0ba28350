"""Where tiles lie in a sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.diagnostics.mosaic import TILE, TILE_GAP, write_mosaic


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 2 * TILE])
def test_tiles_stand_row_by_row(tmp_path: Path, channels: int, side: int) -> None:
    tiles = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, channels, side, side)
    write_mosaic(tmp_path / "plain.png", tiles, ["", ""], ["", "", ""])
    sheet = np.asarray(Image.open(tmp_path / "plain.png"))
    shown = min(side, TILE)
    assert sheet.shape == (2 * shown + TILE_GAP, 3 * (shown + TILE_GAP) - TILE_GAP, 3)
    middles = sheet[shown // 2 :: shown + TILE_GAP, shown // 2 :: shown + TILE_GAP, 0]
    assert middles.ravel().tolist() == [0, 51, 102, 153, 204, 255]
    write_mosaic(tmp_path / "labelled.png", tiles, ["first", "second"], ["a", "b", "c"])
    labelled = np.asarray(Image.open(tmp_path / "labelled.png"))
    np.testing.assert_array_equal(labelled[-sheet.shape[0] :, -sheet.shape[1] :], sheet)  # labels are above and left
    left = labelled.shape[1] - sheet.shape[1]
    assert (labelled[:, :left] < 128).any()
