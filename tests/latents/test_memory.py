"""What `encode` holds of pictures is bounded in bytes, and the bound changes no latent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae import LatentCodec
from ldm_vae.data.images import in_order
from ldm_vae.data.shards.index import load_index
from ldm_vae.latents import pictures, stream
from ldm_vae.latents import pictures as picture_stream
from ldm_vae.latents.prefetch import in_thread
from ldm_vae.latents.source import DigestingReader
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import ROOT, encoded, write_tar
from tests.latents.jobs import job, run

CONFIG = AutoencoderConfig(block_out_channels=(8, 8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)
SIDE = 32
PEAK = 16 * SIDE**2  # bytes at the peak of a png of 8 bits


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """12 pictures of one size, one of them cut off."""
    generator = np.random.default_rng(0)
    members = {
        f"{number:02d}.png": encoded(Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)))
        for number in range(12)
    }
    members["05.png"] = members["05.png"][:200]
    return write_tar(tmp_path / "shards" / "0.tar", members).parent


class LatePool(ThreadPoolExecutor):
    """Decodes a picture when it is asked for, so that all that wait count as not decoded yet."""

    def __init__(self) -> None:
        super().__init__(1)
        self.submitted = 0

    def submit(self, call: Callable[..., object], /, *arguments: object, **_: object) -> Future[object]:  # type: ignore[override]
        self.submitted += 1

        class Late(Future[object]):
            def result(self, timeout: float | None = None) -> object:
                if not self.done():
                    try:
                        self.set_result(call(*arguments))
                    except BaseException as error:
                        self.set_exception(error)
                return super().result(timeout)

        return Late()


@pytest.mark.parametrize(("pictures", "expected"), [(0.5, 1), (1, 1), (3.5, 3), (100, 8)])
def test_bytes_of_waiting_pictures_are_bounded(
    codec: LatentCodec, shards: Path, monkeypatch: pytest.MonkeyPatch, pictures: float, expected: int
) -> None:
    """One picture always passes; else as many wait as the bound has room for, or as there may be."""
    length = len(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))))
    monkeypatch.setattr(in_order, "IN_FLIGHT", int(pictures * (PEAK + length * 1.1)))
    pool, waited, given = LatePool(), [], 0
    index = load_index(str(shards))
    for _, sample in picture_stream.decoded(index.shards, job(codec, batch=2), pool, 8, DigestingReader().read):
        waited.append(pool.submitted - given)
        given += 1
        assert sample.key == f"{given - 1:02d}"
        assert (sample.image is None) == (sample.key == "05")
    assert given == 12
    assert max(waited[:3]) == expected  # before the one that is cut off, which has a smaller file


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("bound", [1, 3 * PEAK, 2**30])
def test_the_bound_and_the_threads_change_no_byte(
    codec: LatentCodec, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, workers: int
) -> None:
    work = job(codec, batch=4)
    run(codec, shards, tmp_path / "plain", work)
    monkeypatch.setattr(in_order, "IN_FLIGHT", bound)
    monkeypatch.setattr(stream, "QUEUED", bound // 4)
    run(codec, shards, tmp_path / "bounded", work, workers=workers)
    for name in ("0.tar", "latents.json"):
        assert (tmp_path / "bounded" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("bound", [1, 2**30])
def test_a_decoder_that_fails_ends_the_job_and_its_threads(
    codec: LatentCodec, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError("of the decoder")

    before = threading.active_count()
    with monkeypatch.context() as patched:
        patched.setattr(in_order, "IN_FLIGHT", bound)
        patched.setattr(pictures, "prepare_image", failing)
        with pytest.raises(MemoryError, match="of the decoder"):
            run(codec, shards, tmp_path / "out", job(codec, batch=4))
    assert threading.active_count() == before
    run(codec, shards, tmp_path / "out", job(codec, batch=4))


def test_runs_ahead_by_its_bytes_and_no_further() -> None:
    """Items of 1, 2, ... 6 bytes with room for 5: one that is larger passes alone."""
    made: list[int] = []
    reached = threading.Event()

    def items() -> Iterator[int]:
        for size in range(1, 7):
            made.append(size)
            if size == 4:
                reached.set()
            yield size

    ahead = in_thread(items(), depth=10, size=lambda item: item, limit=5)
    assert next(ahead) == 1
    assert reached.wait(60)  # 2 and 3 wait in the queue, 4 to get in
    assert made == [1, 2, 3, 4]
    assert list(ahead) == [2, 3, 4, 5, 6]


def test_files_that_are_carried_along_fill_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small cut of a large file, which is kept."""
    monkeypatch.setattr(stream, "WINDOW_PIXELS", 1000)
    small = np.zeros((3, 4, 4), np.float32)
    kept = [(0, picture_stream.ImageSample(f"{i}", {"jpg": bytes(500 * stream.PIXEL)}, small)) for i in range(6)]
    assert [len(window) for _, window in stream._windows(iter(kept), 8)] == [2, 2, 2]
    bare = [(0, picture_stream.ImageSample(f"{i}", {}, small)) for i in range(6)]
    assert [len(window) for _, window in stream._windows(iter(bare), 8)] == [6]


ENCODE = """
import resource, sys
from pathlib import Path
import torch
from ldm_vae import LatentCodec
from ldm_vae.networks.kl import Autoencoder
from tests.latents.jobs import job, run
from tests.latents.test_memory import CONFIG
codec = LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False))
run(codec, Path(sys.argv[1]), Path(sys.argv[2]), job(codec, batch=4, resize=64), workers=16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_photographs_of_24_megapixels_take_little_more_than_small_ones(tmp_path: Path) -> None:
    """16 threads would take 6 GB to decode them."""
    peaks = []
    for size in ((60, 40), (6000, 4000)):
        data = encoded(Image.new("RGB", size), "JPEG")
        place = tmp_path / str(size[0])
        write_tar(place / "shards" / "0.tar", {f"{i:02d}.jpg": data for i in range(20)})
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", ENCODE, str(place / "shards"), str(place / "out")]
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        peaks.append(int(found.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 1.25 * in_order.IN_FLIGHT  # what the allocator keeps is in it
