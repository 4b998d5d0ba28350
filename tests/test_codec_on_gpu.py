"""A codec on a GPU gives what the CPU gives, whole and in pieces, and keeps to its bound; a batch that has no room is
halved. `python -m pytest -m gpu` asks a card; the other tests ask a device that pretends to be one."""

from __future__ import annotations

import pytest

from tests.cards import DEVICES, SLOW_DEVICES, play

# Height, width, the bound in MiB, and what may come on top: on a card, the workspaces of cuDNN.
PICTURES = {"gpu": (192, 256, 12, 1), "cuda": (1024, 1280, 160, 64)}


@pytest.mark.parametrize("device", DEVICES)
def test_a_codec_gives_what_the_cpu_gives_whole_and_in_pieces(device: str) -> None:
    """Both round in float32: 5e-5 of the standard deviation in this network. With TF32 it would be 5e-3 and more,
    and a piece that is normalised by itself would be off by 1e-1."""
    *picture, beside = PICTURES[device]
    found = play(device, "codec", *picture)
    assert len(found) == 4
    for name, values in found.items():
        assert values["error"] < 1e-3, name
    for direction in ("encode", "decode"):
        assert found[f"pieces {direction}"]["memory"] < picture[-1] + beside < found[f"whole {direction}"]["memory"]


@pytest.mark.parametrize("device", SLOW_DEVICES)
def test_a_batch_that_does_not_fit_is_halved(device: str) -> None:
    """On a card cuBLAS takes 64 of the 200 MiB; one layer of 64 images takes 134."""
    images, side, mebibytes = {"gpu": (8, 64, 12), "cuda": (64, 128, 200)}[device]
    found = play(device, "halved", images, side, mebibytes)
    assert f"ran out with {images} images" in found["said"][0]
    assert len(found["little"]) == len(found["plenty"]) == images
    for ours, theirs in zip(found["little"], found["plenty"], strict=True):
        assert ours == {name: pytest.approx(value, rel=1e-4) for name, value in theirs.items()}
