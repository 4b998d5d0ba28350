"""The moving average against PyTorch's, and its warm-up against diffusers'."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from train.ema import Ema, EmaConfig

pytestmark = pytest.mark.numerical

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)


def test_averages_are_pytorchs_and_bad_steps_are_passed_over() -> None:
    torch.manual_seed(0)
    model = Autoencoder(CONFIG).double()
    ema = Ema(model, EmaConfig(decay=0.9, warmup=False))
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # the first call copies
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        finite = step != 2
        ema.update(torch.tensor(finite), step)
        if finite:
            theirs.update_parameters(model)
    for ours, other in zip(ema.model.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(ours, other)
        assert not ours.requires_grad


def test_buffers_are_copied_those_too_that_took_anothers_place() -> None:
    model = Autoencoder(CONFIG)
    model.register_buffer("codes", torch.zeros(3))
    ema = Ema(model, EmaConfig())
    model.codes = torch.arange(3.0)
    ema.update(torch.tensor(True), 0)
    assert torch.equal(ema.model.get_buffer("codes"), torch.arange(3.0))


def test_the_warm_up_is_that_of_diffusers() -> None:
    """Which counts from 1, and gives 0 for its own first step, where it copies."""
    ema = Ema(Autoencoder(CONFIG), EmaConfig(decay=0.99))
    reference = EMAModel(ema.model.parameters(), decay=0.99)
    for step in (1, 2, 10, 100, 880, 881, 882, 890, 900, 10_000):
        assert ema.decay(step) == pytest.approx(reference.get_decay(step + 1))
    assert ema.decay(0) == 0.1
    assert Ema(ema.model, EmaConfig(decay=0.99, warmup=False)).decay(0) == 0.99
