"""The picture for the README: of the size asked for, small, and of the page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.errors import UserError

tool = pytest.importorskip("tools.screenshot", reason="needs selenium")
PAGE = "<!doctype html><style>body { margin: 0; background: rgb(200 30 40) }</style>"


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium, chromedriver"
)
def test_it_shows_the_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(PAGE)
    tool.screenshot(tmp_path / "report.html", tmp_path / "docs" / "report.png", 320, 200)
    picture = np.asarray(Image.open(tmp_path / "docs" / "report.png").convert("RGB"))
    assert picture.shape == (200, 320, 3)
    assert np.abs(picture.astype(int) - (200, 30, 40)).max() <= 2


def test_no_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ldm-vae report RUN"):
        tool.screenshot(tmp_path / "report.html", tmp_path / "report.png", 320, 200)
    assert list(tmp_path.iterdir()) == []
