"""Pictures are encoded and written beside the decoding of the next ones, in order, and errors come in their place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae import LatentCodec, LatentDataset
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.images.decode import encode_image
from ldm_vae.errors import UserError
from ldm_vae.latents import picture_files
from ldm_vae.latents.decode import decoded
from ldm_vae.latents.picture_files import write_pictures
from ldm_vae.latents.picture_names import PictureNames
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import encoded, write_tar
from tests.kl import autoencoder_in
from tests.latents.jobs import job, run

PICTURES = 12
PATIENCE = 60.0  # seconds: nothing that is tested takes one
CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)
Encode = Callable[[np.ndarray, str], bytes]


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False))


@pytest.fixture
def latents(codec: LatentCodec, tmp_path: Path) -> LatentDataset:
    generator = np.random.default_rng(0)
    pictures = (Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(PICTURES))
    write_tar(tmp_path / "shards" / "0.tar", {f"{n:02d}.png": encoded(picture) for n, picture in enumerate(pictures)})
    run(codec, tmp_path / "shards", tmp_path / "latents", job(codec, batch=4))
    return LatentDataset(tmp_path / "latents", scale=LatentScale())


@pytest.fixture
def write(codec: LatentCodec, latents: LatentDataset, tmp_path: Path) -> Callable[[], Iterator[tuple[int, bool]]]:
    names, folder = PictureNames(latents, "png"), tmp_path / "pictures"
    return lambda: write_pictures(decoded(codec, latents, range(PICTURES)), names, folder, "png")


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_device_gets_the_next_pictures_before_one_is_encoded(
    codec: LatentCodec,
    write: Callable[[], Iterator[tuple[int, bool]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No picture is encoded here before the decoder has computed the third: one thread alone would wait for ever."""
    decoders, third, seen = [0], threading.Event(), []

    def computed(*_: object) -> None:
        decoders[0] += 1
        if decoders[0] == 3:
            third.set()

    def late(array: np.ndarray, extension: str) -> bytes:
        seen.append((third.wait(PATIENCE), written(tmp_path / "pictures")))
        return encode_image(array, extension)

    autoencoder_in(codec.model).decoder.register_forward_hook(computed)
    monkeypatch.setattr(picture_files, "encode_image", late)
    assert list(write()) == [(item, True) for item in range(PICTURES)]
    assert all(waited for waited, _ in seen) and seen[0][1] == []
    assert written(tmp_path / "pictures") == [f"{number:02d}.png" for number in range(PICTURES)]


def test_files_come_in_order_however_long_each_takes(
    write: Callable[[], Iterator[tuple[int, bool]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = threading.Event()
    calls = iter(range(PICTURES))

    def late(array: np.ndarray, extension: str) -> bytes:
        if (call := next(calls)) == 0:
            assert second.wait(PATIENCE)
        elif call == 1:
            second.set()
        return encode_image(array, extension)

    monkeypatch.setattr(picture_files, "encode_image", late)
    monkeypatch.setattr(picture_files, "cores_of_process", lambda: 2)
    for place, (item, _) in enumerate(write()):
        assert item == place
        assert written(tmp_path / "pictures") == [f"{number:02d}.png" for number in range(place + 1)]


def test_an_error_in_writing_ends_it_after_the_pictures_before(
    write: Callable[[], Iterator[tuple[int, bool]]], tmp_path: Path
) -> None:
    folder, before = tmp_path / "pictures", threading.active_count()
    folder.mkdir()
    (folder / "03.png").write_bytes(b"another picture")
    with pytest.raises(UserError, match=r"03\.png exists and is another picture"):
        list(write())
    assert written(folder) == ["00.png", "01.png", "02.png", "03.png"]  # no stage among them
    assert (folder / "03.png").read_bytes() == b"another picture"
    assert threading.active_count() == before


def test_an_error_in_decoding_comes_after_the_pictures_before(latents: LatentDataset, tmp_path: Path) -> None:
    def pictures() -> Iterator[tuple[int, np.ndarray | None]]:
        for item in range(3):
            yield item, None if item == 1 else np.zeros((3, 8, 8), np.float32)
        raise UserError("too little memory", "take more")

    done = write_pictures(pictures(), PictureNames(latents, "png"), tmp_path / "pictures", "png")
    assert [next(done) for _ in range(3)] == [(0, True), (1, False), (2, True)]
    with pytest.raises(UserError, match="too little memory"):
        next(done)
    assert written(tmp_path / "pictures") == ["00.png", "02.png"]
