"""Shared by all tests: one thread (or LDM_VAE_TEST_THREADS), seeded pictures, small shards, a tiny recipe."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# One thread, of the processes that tests start, too: sums in one order, bit for bit. `make test-portable` asks for two.
os.environ["OMP_NUM_THREADS"] = os.environ.get("LDM_VAE_TEST_THREADS", "1")

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # train/ and tools/ are not in the wheel
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Tests expect the numbers and words of a CPU, so cards are hidden; processes of tests marked `gpu` get ALL_CARDS.
CARDS = "CUDA_VISIBLE_DEVICES"
HAS_CARD = torch.version.cuda is not None and torch.cuda.device_count() > 0  # this does not start CUDA yet
ALL_CARDS = {CARDS: os.environ[CARDS]} if CARDS in os.environ else {}
if HAS_CARD:
    os.environ[CARDS] = ""


@pytest.fixture(autouse=True, scope="session")
def _cache_of_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `ldm-vae encode` remembers of files goes where the tests' other files go."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm_vae.latents.source.cache_folder", lambda: folder)
        yield


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth random picture, (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """The path of a tar with these members, name -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def members(path: Path) -> dict[str, bytes]:
    """Name -> content of the files in a tar."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, f"{member.name} is no file"
            found[member.name] = file.read()
    return found


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A tar of key.npy."""
    write_tar(path, {f"{key}.npy": npy(array) for key, array in arrays.items()})


def write_shards(folder: Path, counts: list[int], first_seed: int = 0) -> Path:
    """Shards of `counts` png pictures with labels, by webdataset's own writer, without an index."""
    folder.mkdir(parents=True)
    seed = first_seed
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar"), encoder=False) as writer:
            for _ in range(count):
                writer.write({"__key__": f"{seed:05d}", "png": encoded(picture(seed)), "cls": str(seed % 3).encode()})
                seed += 1
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` with 23 pictures in 3 uneven shards, `validation` with 5 in one."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "train", [9, 4, 10])
    write_shards(folder / "validation", [5], first_seed=100)
    return folder


TINY = """\
# A network that trains in milliseconds, with every loss on.
output: {output}
steps: 6
model: {{block_out_channels: [8, 16], layers_per_block: 1, norm_groups: 4, latent_channels: 2}}
data:
  train: {shards}/train
  validation: {shards}/validation
  batch: 4
  workers: 0
  image: {{crop: 32, flip: true}}
loss:
  perceptual: {{network: alex}}
discriminator: {{channels: 8, layers: 2, start: 1, generator_start: 2, ramp: 2}}
optimizer: {{lr: 1e-3, warmup: 2, decay: cosine}}
validation: {{every: 3, batch: 2, metrics: [psnr], pictures: 2}}
checkpoint: {{every: 3}}
log: {{every: 2, trackers: []}}
"""


@pytest.fixture
def recipe(tmp_path: Path, shards: Path) -> Path:
    """The path of a tiny recipe whose run folder is tmp_path/run."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(output=tmp_path / "run", shards=shards))
    return path


@pytest.fixture
def injected(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """injected(fault, times): what a test did to the software; tools/reliability.py makes docs/reliability.md of it."""

    def note(fault: str, times: int) -> None:
        record_property("fault", fault)
        record_property("times", times)

    return note


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of optional real data; the test is skipped where there is none."""
    folder = os.environ.get("LDM_VAE_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set LDM_VAE_TEST_DATA")
    return Path(folder)
