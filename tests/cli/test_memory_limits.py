"""Too little memory: `ldm-vae` ends in a line and an exit code, leaves out no picture, and a rerun is complete."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.latents.folder import read_records
from tests.cli.commands import command, digests
from tests.conftest import ROOT, encoded, write_tar

FIRST, LAST, STEP = 0, 1000, 220  # MiB beyond the process itself; the job takes some 300, and threads reserve more


def photographs() -> dict[str, bytes]:
    """Small pictures, and large ones whose decoders need memory of their own and report its lack in their own ways."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image, small = (Image.fromarray(coarse).resize(size) for size in ((1600, 1200), (80, 64)))
    progressive, webp = io.BytesIO(), io.BytesIO()
    image.save(progressive, "JPEG", progressive=True)
    image.save(webp, "WEBP", method=0)
    large = {"0.jpg": progressive.getvalue(), "1.webp": webp.getvalue(), "2.tif": lzw(image)}
    return {f"small{number}.png": encoded(small) for number in range(4)} | large


def lzw(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF", compression="tiff_lzw")
    return file.getvalue()


JOBS = {
    "encode": ("encode", "RUN", "SHARDS", "OUT", "--workers", 2, "--crop", "center:64"),
    "evaluate": ("evaluate", "RUN", "SHARDS", "--metrics", "psnr", "--json", "OUT", "--crop", "center:64"),
    "stats": ("stats", "RUN", "SHARDS", "--json", "OUT", "--crop", "center:64"),
    "check": ("check", "SHARDS", "--decode", "--json", "OUT"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_too_little_memory_leaves_out_no_picture(
    run: Path, tmp_path: Path, injected: Callable[[str, int], None], name: str
) -> None:
    shards = write_tar(tmp_path / "shards" / "000000.tar", photographs()).parent
    report = tmp_path / "report"
    places = {"RUN": run, "SHARDS": shards}
    job = [places.get(str(word), word) for word in JOBS[name]]
    limits = [report, FIRST, LAST, STEP]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    script = [sys.executable, Path(__file__).parent / "under_limits.py", *limits, *job]
    subprocess.run([str(word) for word in script], env=environment, check=True, stdout=subprocess.DEVNULL)
    unlimited, *limited = [json.loads(line) for line in report.read_text().splitlines()]
    assert unlimited["code"] == 0
    expected = content(report.with_suffix(".d") / "None")
    failed = [line for line in limited if line["code"] != 0]
    assert len(limited) > len(failed) > 0  # the limits lie on both sides of what the job takes
    for line in limited:
        place = report.with_suffix(".d") / str(line["limit"])
        if name == "encode":
            assert [record.quarantined for record in read_records(place).values()] in ([], [()])
        if line in failed:
            assert line["error"].count("\n") == 1 and "too little memory" in line["error"], line
            assert command(*(place if word == "OUT" else word for word in job)) == 0
        assert content(place) == expected
    injected(f"`{name}` under a limit of memory (RLIMIT_AS), in steps", len(failed))


def content(place: Path) -> dict[str, str] | str:
    return digests(place) if place.is_dir() else place.read_text()
