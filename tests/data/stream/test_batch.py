import numpy as np
import torch

from ldm_vae.data.stream.batch import Batch
from ldm_vae.noise import rng
from ldm_vae.transfer import Courier


def test_rng_depends_on_every_argument_and_on_nothing_else() -> None:
    arguments: list[tuple[int, str, *tuple[int, ...]]] = [
        (0, "crop", 1, 2),
        (1, "crop", 1, 2),
        (0, "flip", 1, 2),
        (0, "crop", 2, 1),
        (0, "crop", 1),
        (0, "crop"),
    ]
    # Two words for a number: 2^32 is neither 1 nor the pair (0, 1); zeros at the end count.
    arguments += [(0, "crop", 2**32), (0, "crop", 0, 1), (0, "crop", 1, 0), (0, "crop", 1, 2, 0)]
    drawn = {tuple(rng(*a).integers(2**62, size=2).tolist()) for a in arguments}
    assert len(drawn) == len(arguments)
    np.random.seed(7)
    torch.manual_seed(7)
    assert rng(*arguments[0]).integers(2**62) == rng(*arguments[0]).integers(2**62)


def test_rng_stays_what_it_is() -> None:
    """A resumed run meets the numbers it would have met: these were drawn once and written down."""
    assert rng(3, "shards", 5).permutation(8).tolist() == [0, 7, 2, 3, 4, 5, 6, 1]


def test_a_courier_brings_what_the_networks_take() -> None:
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), ["a", "b"], torch.tensor([0, 1]))
    moved = batch.by(Courier(torch.device("meta")), torch.float64)
    assert moved.label is not None
    assert moved.image.device.type == moved.label.device.type == "meta" and moved.image.dtype == torch.float64
    assert moved.slot.device.type == "cpu" and moved.key == ["a", "b"]
