"""What happens between shards and latents: everything at the same time, sizes in buckets, sums in one order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_vae import LatentCodec, LatentDataset
from ldm_vae.data.images.fit import ImageConfig, fit_image
from ldm_vae.latents import folder as latent_shards
from ldm_vae.latents import pictures as picture_stream
from ldm_vae.latents import source
from ldm_vae.latents import stream as encode_stream
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import write_arrays
from tests.latents.jobs import job, run
from tests.tolerance import roundings

pytestmark = pytest.mark.numerical

F = 4
CONFIG = AutoencoderConfig(block_out_channels=(8, 8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False))


def pictures(sizes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(len(sizes))
    return {key: generator.uniform(-1, 1, (3, *size)).astype(np.float32) for key, size in sizes.items()}


def test_reading_decoding_encoding_and_writing_happen_at_the_same_time(
    codec: LatentCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of each of the four waits for the other three, which is without end unless all run at once."""
    for number in range(8):
        write_arrays(tmp_path / "shards" / f"{number}.tar", pictures({f"{number}{i}": (8, 8) for i in range(2)}))
    together = threading.Barrier(4, timeout=60)  # then BrokenBarrierError
    met = []

    def meeting(owner: object, name: str, call: int) -> None:
        real: Callable[..., object] = getattr(owner, name)
        calls = iter(range(10**6))

        def met_here(*arguments: object) -> object:
            if next(calls) == call:
                together.wait()
                met.append(name)
            return real(*arguments)

        monkeypatch.setattr(owner, name, met_here)

    meeting(latent_shards, "_add", 0)  # the first sample of shard 0 is written
    meeting(codec, "checked_moments", 2)  # while shard 2 is encoded
    meeting(picture_stream, "prepare_image", 8)  # the pictures of shard 4 are decoded
    meeting(source, "read_samples", 5)  # and shard 5 is opened
    run(codec, tmp_path / "shards", tmp_path / "out", job(codec, batch=2), workers=2)
    assert sorted(met) == ["_add", "checked_moments", "prepare_image", "read_samples"]
    assert len(LatentDataset(tmp_path / "out")) == 16


def test_a_cpu_encodes_batches_side_by_side_to_the_same_bytes_on_any_number_of_threads(
    codec: LatentCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arrays(tmp_path / "shards" / "0.tar", pictures({f"{i}": (40, 56) for i in range(12)}))
    work = job(codec, batch=2)
    moments = codec.checked_moments
    seen: set[tuple[int, int]] = set()
    together = threading.Barrier(3, timeout=60)

    def watched(images: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        if torch.get_num_threads() == 1 and alone is False:
            together.wait()  # six batches in three threads: two rounds
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return moments(images)

    monkeypatch.setattr(codec, "checked_moments", watched)
    outputs = {}
    before = torch.get_num_threads()
    for threads in (1, 3):
        alone = threads == 1
        seen.clear()
        torch.set_num_threads(threads)
        try:
            run(codec, tmp_path / "shards", tmp_path / f"{threads}", work)
            assert torch.get_num_threads() == threads  # as it was
        finally:
            torch.set_num_threads(before)
        assert len(seen) == threads and {count for _, count in seen} == {1}
        files = ("0.tar", "latents.json", "records/0.json")
        outputs[threads] = [(tmp_path / f"{threads}" / name).read_bytes() for name in files]
    assert outputs[1] == outputs[3]


@pytest.mark.parametrize(("resize", "multiple"), [(24, 8), (None, 12), (17, None)])
def test_images_of_many_sizes_go_in_batches_of_one_padded_size_each_once(
    codec: LatentCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: int | None, multiple: int | None
) -> None:
    generator = np.random.default_rng(0)
    sides = [1, 2, 3, 8, 11, 12, 13, 24, 25, 31, 33, 47]
    sizes = {f"{i:02d}": (int(h), int(w)) for i, (h, w) in enumerate(generator.choice(sides, (70, 2)))}
    arrays = pictures(sizes)
    for number in range(2):
        write_arrays(tmp_path / "shards" / f"{number}.tar", {key: arrays[key] for key in list(arrays)[number::2]})
    batch, step = 3, multiple or F
    moments = codec.checked_moments
    shapes: list[tuple[int, ...]] = []

    def watched(images: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        shapes.append(tuple(images.shape))
        return moments(images)

    with monkeypatch.context() as patch:
        patch.setattr(codec, "checked_moments", watched)
        run(codec, tmp_path / "shards", tmp_path / "out", job(codec, batch=batch, resize=resize, multiple=multiple))

    def before(key: str) -> tuple[int, int]:
        """Written out once more: the short side to `resize`, the long one in proportion, rounded down."""
        height, width = sizes[key]
        if resize is None:
            return height, width
        return (resize, resize * width // height) if height <= width else (resize * height // width, resize)

    def padded(key: str) -> tuple[int, int]:
        height, width = before(key)
        return (height + step - 1) // step * step, (width + step - 1) // step * step

    expected: list[tuple[int, ...]] = []
    for number in range(2):
        keys = list(arrays)[number::2]
        for first in range(0, len(keys), 8 * batch):  # the window among which equal sizes are looked for
            for (height, width), count in Counter(padded(key) for key in keys[first : first + 8 * batch]).items():
                full, rest = divmod(count, batch)
                expected += [(batch, 3, height, width)] * full + [(rest, 3, height, width)] * (rest > 0)
    assert Counter(shapes) == Counter(expected)
    dataset = LatentDataset(tmp_path / "out")
    assert Counter(dataset.key(i) for i in range(len(dataset))) == Counter(list(sizes))
    for item in range(len(dataset)):
        key = dataset.key(item)
        assert dataset.size(item) == before(key)
        image = fit_image(arrays[key], ImageConfig(resize=resize), None)
        for axis, (side, full) in enumerate(zip(before(key), padded(key), strict=True), 1):
            fill = [(0, 0)] * 3
            fill[axis] = (0, full - side)
            image = np.pad(image, fill, "reflect" if full - side < side else "edge")
        alone = codec.moments(torch.from_numpy(image)[None])[0, : codec.latent_channels]
        # float16 keeps 11 bits. Alone, float32 is summed in another order than in a batch: some tens of roundings.
        torch.testing.assert_close(dataset.raw(item), alone, rtol=2**-11, atol=roundings(alone, 100))


def test_large_pictures_are_not_held_back_for_others_of_their_size(
    codec: LatentCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window ends with the picture that fills it, whatever the batch: here with the second of 64 pixels."""
    write_arrays(tmp_path / "shards" / "0.tar", pictures({f"{i}": (8, 8) for i in range(6)}))
    monkeypatch.setattr(encode_stream, "WINDOW_PIXELS", 100)
    moments = codec.checked_moments
    counts: list[int] = []

    def counted_moments(images: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        counts.append(len(images))
        return moments(images)

    monkeypatch.setattr(codec, "checked_moments", counted_moments)
    run(codec, tmp_path / "shards", tmp_path / "out", job(codec, batch=4))
    assert counts == [2, 2, 2]
