"""The guard restores the buffers that a module has now."""

from __future__ import annotations

import torch
from torch import nn

from ldm_vae.data.stream.batch import Batch
from train.guard import Guard


class Codebook(nn.Module):
    codes: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(3))


def test_a_buffer_that_took_anothers_place_is_restored() -> None:
    module, batch = Codebook(), Batch(torch.zeros(1, 3, 8, 8), label=None, key=["a"], slot=torch.zeros(1))
    guard = Guard([module], torch.device("cpu"), patience=2, look=1)
    module.codes = torch.ones(3)
    guard.conclude(torch.tensor(True), 0, [batch])
    module.codes = torch.full((3,), float("nan"))
    guard.conclude(torch.tensor(False), 1, [batch])
    assert module.codes.tolist() == [1, 1, 1]
