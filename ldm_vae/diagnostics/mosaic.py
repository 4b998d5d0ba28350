"""Writes decoded tensors as one small PNG of tiles, with a label at each row and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm_vae.data.images.pixels import to_uint8

TILE = 96  # px, side of a tile; larger tiles are averaged down to it
TILE_GAP = 3  # px between tiles
LABEL_HEIGHT = 13  # px, height of the font
PAPER, LABEL_COLOUR = "white", "black"


def write_mosaic(path: Path, tiles: Tensor, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Writes the tiles row by row. Empty labels take no room.

    tiles: (len(rows) * len(columns), 1 or 3, S, S) in [-1, 1]; values beyond are clamped.
    rows, columns: their labels.
    """
    pictures = [_tile(tile) for tile in tiles]
    side = pictures[0].width
    font = ImageFont.load_default(LABEL_HEIGHT)
    left = max((round(font.getlength(row)) for row in rows), default=0)
    left += 2 * TILE_GAP if left else 0
    top = LABEL_HEIGHT + 2 * TILE_GAP if any(columns) else 0
    width = left + len(columns) * (side + TILE_GAP) - TILE_GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (side + TILE_GAP) - TILE_GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        draw.text((left + column * (side + TILE_GAP) + side / 2, TILE_GAP), label, LABEL_COLOUR, font, anchor="ma")
    for row, label in enumerate(rows):
        draw.text((TILE_GAP, top + row * (side + TILE_GAP) + side / 2), label, LABEL_COLOUR, font, anchor="lm")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, len(columns))
        sheet.paste(picture, (left + column * (side + TILE_GAP), top + row * (side + TILE_GAP)))
    sheet.save(path, optimize=True)


def _tile(tile: Tensor) -> Image.Image:
    pixels = np.ascontiguousarray(to_uint8(tile).permute(1, 2, 0).cpu().numpy())
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    return picture if picture.width <= TILE else picture.resize((TILE, TILE), Image.Resampling.BOX)
