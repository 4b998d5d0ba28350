"""Without memory, no decoder says that a good picture is broken: libjpeg and libwebp alone would."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from ldm_vae.data.images import pixels as pixels_module
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.pixels import BrokenImage
from tests.conftest import ROOT, encoded

LIMITS, STEP = 8, 8  # limits of 0 to 56 MiB; each of these pictures needs some 20


def large() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((1200, 900))


def files() -> dict[str, bytes]:
    image = large()
    progressive, webp, lzw, deflated = (io.BytesIO() for _ in range(4))
    image.save(progressive, "JPEG", progressive=True)
    image.save(webp, "WEBP", method=0)
    image.save(lzw, "TIFF", compression="tiff_lzw")
    tifffile.imwrite(deflated, np.asarray(image), photometric="rgb", compression="zlib")
    return {
        "baseline.jpg": encoded(image, "JPEG"),
        "progressive.jpg": progressive.getvalue(),
        "lossy.webp": webp.getvalue(),
        "8bits.png": encoded(image),
        "16bits.png": bytes(imagecodecs.png_encode(np.asarray(image).astype(np.uint16) * 257, level=1)),
        "lzw.tif": lzw.getvalue(),
        "deflated.tif": deflated.getvalue(),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS binds on Linux only")
def test_too_little_memory_breaks_no_picture(tmp_path: Path, injected: Callable[[str, int], None]) -> None:
    for name, data in files().items():
        (tmp_path / name).write_bytes(data)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(Path(__file__).parent / "under_limits.py"), str(tmp_path), str(LIMITS), str(STEP)]
    found = json.loads(subprocess.run(script, env=environment, check=True, capture_output=True, text=True).stdout)
    for name, (whole, *limited) in found.items():
        assert len(whole) == 64, name  # a digest
        assert {whole, "MemoryError"} <= set(limited) <= {whole, "MemoryError", "UserError"}, name
    times = sum(outcome == "MemoryError" for outcomes in found.values() for outcome in outcomes)
    injected("pictures of seven kinds are decoded under limits of memory, in steps", times)


def test_a_damaged_picture_is_still_broken_where_memory_was_short_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier call of the thread met says nothing about this one."""
    progressive, webp = (files()[name] for name in ("progressive.jpg", "lossy.webp"))
    with pytest.raises(MemoryError):
        np.empty(2**50, np.uint8)
    with pytest.raises(BrokenImage):
        decode_image(progressive[: len(progressive) // 2], "jpg", 3)
    monkeypatch.setattr(pixels_module, "allocation_failed", lambda: True)
    with pytest.raises(MemoryError):
        decode_image(webp[: len(webp) // 2], "webp", 3)
