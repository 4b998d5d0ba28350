"""What decoders print beside their errors reaches no user of a command, who could not tell which picture it is of."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.conftest import ROOT, encoded, picture, write_tar

tifffile = pytest.importorskip("tifffile")
PLANAR_CONFIGURATION = b"\x1c\x01"  # 284, little-endian


def of_tifffile() -> bytes:
    """A TIFF whose planar configuration is 9, which tifffile logs."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.asarray(picture(0)), photometric="rgb", planarconfig="contig", byteorder="<")
    data = bytearray(file.getvalue())
    place = data.index(PLANAR_CONFIGURATION + b"\x03\x00\x01\x00\x00\x00")
    data[place + 8] = 9
    return bytes(data)


def of_libtiff() -> bytes:
    """A Lab TIFF whose deflated strip is damaged: libtiff itself writes that to file descriptor 2."""
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(picture(0), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert image is not None
    file = io.BytesIO()
    image.save(file, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(file.getvalue())
    with Image.open(io.BytesIO(data)) as opened:
        strip = opened.tag_v2[273][0]  # type: ignore[attr-defined]
    data[strip + 100] ^= 0xFF
    return bytes(data)


def of_pillow() -> bytes:
    """A JPEG whose EXIF block promises more than it holds, of which Pillow warns."""
    entry = b"\x01\x0f\x00\x02\x00\x00\xff\xff\x00\x00\x00\x1a"  # Make: 65535 characters at byte 26
    file = io.BytesIO()
    picture(0).save(file, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\x00\x01" + entry + b"\0\0\0\0")
    return file.getvalue()


CASES = {"tifffile": ("tif", of_tifffile), "libtiff": ("tif", of_libtiff), "pillow": ("jpg", of_pillow)}
LIBRARY = (
    "import sys; from ldm_vae.data.images.decode import decode_image as d\n"
    "try: d(open(sys.argv[1], 'rb').read(), sys.argv[2], 3)\n"
    "except Exception: pass"
)


def stderr_of(*arguments: object) -> str:
    run = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stderr
    return run.stderr


@pytest.mark.parametrize("name", CASES)
def test_check_prints_no_line_of_a_decoder(name: str, tmp_path: Path) -> None:
    kind, make = CASES[name]
    write_tar(tmp_path / "shards" / "0.tar", {f"a.{kind}": make(), "b.png": encoded(picture(1))})
    assert stderr_of("-m", "ldm_vae", "check", tmp_path / "shards", "--decode") == ""


@pytest.mark.parametrize("name", ["tifffile", "pillow"])
def test_these_pictures_are_such_that_decoders_speak(name: str, tmp_path: Path) -> None:
    """In a program of their own, users see the warnings as Python shows them."""
    kind, make = CASES[name]
    (tmp_path / "picture").write_bytes(make())
    assert stderr_of("-c", LIBRARY, tmp_path / "picture", kind) != ""
