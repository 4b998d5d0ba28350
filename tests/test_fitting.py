"""What does not fit goes on in smaller parts, at last in pieces, and what fits is remembered."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from ldm_vae import LatentCodec
from ldm_vae.data.stream.batch import Batch
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import measure_batches
from ldm_vae.fitting import SHARES, Single
from ldm_vae.metrics.image import ImageMetrics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.overlap import Finish, one_behind
from ldm_vae.sparing import NoRoom, share_of_whole
from tests.kl import autoencoder_in

CPU = torch.device("cpu")
SMALL, LARGE, LARGER = (3, 8, 8), (3, 16, 16), (3, 32, 32)


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1)
    return LatentCodec(Autoencoder(config).eval().requires_grad_(False))


class Device:
    """Has room for so many values; in pieces, an image takes a share of its own."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.tried: list[tuple[int, float | None]] = []  # number of the image, share

    def launch(self, single: Single[int]) -> Finish[int]:
        share = share_of_whole()
        self.tried.append((single.item, share))
        if math.prod(single.shape) * (1 if share is None else share) > self.room:
            raise torch.OutOfMemoryError
        return lambda: single.item


def test_pieces_get_smaller_until_they_fit_and_as_large_images_begin_there(caplog: pytest.LogCaptureFixture) -> None:
    device, shapes = Device(200), (SMALL, LARGE, LARGE, SMALL, LARGER)
    with caplog.at_level(logging.WARNING):
        found = list(one_behind((Single(i, shape) for i, shape in enumerate(shapes)), device.launch, CPU))
    assert found == [0, 1, 2, 3, 4]
    half, eighth, least = SHARES
    first = [(0, None), (1, None), (1, None), (1, half), (1, eighth)]  # the second time with nothing beside it
    assert device.tried == [*first, (2, eighth), (3, None), (4, eighth), (4, eighth), (4, least)]
    assert [record.getMessage() for record in caplog.records] == [
        "the memory of cpu ran out: goes on with 1 image at a time",
        "cpu had too little memory for one image alone (3 x 16 x 16): goes on in pieces, which take longer",
    ]
    assert share_of_whole() is None


def test_a_codec_without_room_for_a_whole_image_gives_the_same_numbers(codec: LatentCodec) -> None:
    """Its own passes find no memory here, whatever the batch; pieces call their layers one by one."""
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch, metrics = Batch(images, None, list("abc"), torch.arange(3)), ImageMetrics(("psnr",))
    undisturbed = measure_batches(codec, [batch], metrics)

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError

    for part in (autoencoder_in(codec.model).encoder, autoencoder_in(codec.model).decoder):
        part.register_forward_pre_hook(no_room)
    found = measure_batches(codec, [batch], metrics)
    assert [row.key for row in found] == ["a", "b", "c"]
    for ours, theirs in zip(found, undisturbed, strict=True):  # sums in another order move few values by one level
        assert ours.values["psnr"] == pytest.approx(theirs.values["psnr"], abs=1e-3)


def test_it_ends_in_a_line_where_the_smallest_pieces_do_not_fit() -> None:
    device = Device(-1)
    with pytest.raises(UserError, match=r"too little memory on cpu for one image alone \(3 x 8 x 8\), in pieces too: "):
        list(one_behind([Single(0, SMALL)], device.launch, CPU))
    assert device.tried == [(0, None), (0, None), *((0, share) for share in SHARES)]


def test_it_ends_at_once_where_no_plan_fits() -> None:
    """Smaller shares would not help, and the line says what it takes."""
    tried = []

    def launch(single: Single[int]) -> Finish[int]:
        tried.append(share_of_whole())
        raise NoRoom("10 bytes of free memory", "decoding takes at least 20")

    with pytest.raises(UserError, match=r"\(3 x 8 x 8\): 10 bytes of free memory: decoding takes at least 20: use a"):
        list(one_behind([Single(0, SMALL)], launch, CPU))
    assert tried == [None, None, SHARES[0]]
