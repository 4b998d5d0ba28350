"""The demo's photographs: there, of the stated sizes, in colour, and no scene on both sides."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.errors import UserError
from tools import photographs
from tools.photographs import PHOTOGRAPHS, write_photographs


def test_written_as_the_table_says(tmp_path: Path) -> None:
    write_photographs(tmp_path)
    found = {path.stem: path for path in tmp_path.rglob("*.png")}
    assert found.keys() == PHOTOGRAPHS.keys()
    for name, photograph in PHOTOGRAPHS.items():
        assert found[name].parent.name == photograph.split
        with Image.open(found[name]) as image:
            assert (image.size, image.mode) == (photograph.size, "RGB")
            red, green, blue = np.moveaxis(np.asarray(image).astype(int), 2, 0)
        assert abs(red - green).mean() + abs(green - blue).mean() > 1, f"{name} is grey"


def test_only_large_originals_are_reduced(tmp_path: Path) -> None:
    for photograph in PHOTOGRAPHS.values():
        spec = find_spec(photograph.package)
        assert spec is not None
        assert spec.origin is not None
        with Image.open(Path(spec.origin).parent / photograph.file) as original:
            width, height = original.size
        kept = photograph.size[0] / width
        assert kept == pytest.approx(photograph.size[1] / height, abs=2e-3)  # proportions, to a pixel
        assert kept == 1 or min(photograph.size) == 512


def test_stereo_pair_is_on_one_side() -> None:
    assert PHOTOGRAPHS["motorcycle_left"].split == PHOTOGRAPHS["motorcycle_right"].split


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="skimage not found"):
        write_photographs(tmp_path)
