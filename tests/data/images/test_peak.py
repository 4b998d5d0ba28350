"""The memory that a picture takes, as its header tells it, against what the process takes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.peak import picture_peak
from tests.conftest import ROOT

SIDE = 3000
BLOCKS = 2**25  # bytes that blocks of float64 take, whatever the size of the picture

MEASURE = """
import json, os, sys
from pathlib import Path
import numpy as np
from ldm_vae.data.images import depth, tiff
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.fit import ImageConfig, fit_image
from ldm_vae.data.images.prepare import prepare_image

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

fit_image(np.zeros((3, 64, 64), np.float32), ImageConfig(resize=32), None)  # what libraries take once
for path in sorted(Path(sys.argv[1]).iterdir()):
    for channels in (1, 3, 4):
        for resize in (None, 1500):
            for prepare in (False, True):
                if os.fork() == 0:
                    data, before = path.read_bytes(), peak()
                    config = ImageConfig(channels=channels, resize=resize)
                    if prepare:
                        prepare_image(data, path.suffix[1:], config, None).floats()
                    else:
                        fit_image(decode_image(data, path.suffix[1:], channels), config, None)
                    print(json.dumps([path.name, channels, resize, peak() - before]), flush=True)
                    os._exit(0)
                if os.wait()[1]:
                    sys.exit("a child failed")
"""


def files() -> dict[str, bytes]:
    def saved(mode: str, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        Image.new(mode, (SIDE, SIDE)).save(file, kind, **options)
        return file.getvalue()

    return {
        "baseline.jpg": saved("RGB", "JPEG"),
        "progressive_cmyk.jpg": saved("CMYK", "JPEG", progressive=True),
        "transparent_grey.png": saved("LA", "PNG"),
        "lossless.webp": saved("RGBA", "WEBP", lossless=True, method=0),
        "deep.png": bytes(imagecodecs.png_encode(np.zeros((SIDE, SIDE, 3), np.uint16), level=1)),
        "alpha.tif": saved("RGBA", "TIFF", compression="tiff_lzw"),
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_no_picture_takes_more_than_its_header_tells(tmp_path: Path) -> None:
    for name, data in files().items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    # glibc gives back what is freed, where else it keeps up to 64 MB for what comes next.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 12 * len(files())
    for name, channels, resize, taken in map(json.loads, lines):
        data = (tmp_path / name).read_bytes()
        told = picture_peak(data, Path(name).suffix[1:], ImageConfig(channels=channels, resize=resize))
        assert taken < told + BLOCKS, (name, channels, resize)
        assert taken > 0.25 * told, (name, channels, resize)  # and the bound is no guess


def test_a_file_that_is_refused_takes_nothing() -> None:
    for extension in ("jpg", "png", "webp", "tif", "npy", "gif"):
        assert picture_peak(b"no picture", extension, ImageConfig()) == 0


def test_arrays_are_told_by_their_header() -> None:
    for shape in ((3, 20, 30), (20, 30, 3)):
        file = io.BytesIO()
        np.save(file, np.zeros(shape, np.float64))
        assert picture_peak(file.getvalue(), "npy", ImageConfig()) == 20 * 30 * 3 * (4 + 8)
