"""All parts together can learn: one batch, all losses on, is reproduced to more than 35 dB."""

import pytest
import torch

from tests.train.conftest import Build, batches_of
from train.step import train_step


@pytest.mark.slow
def test_one_batch_overfits(build: Build) -> None:
    steps = 800
    run, recipe = build(
        f"steps={steps}",
        "model.block_out_channels=[32,32]",
        "model.norm_groups=8",
        "model.latent_channels=6",
        "optimizer={lr: 2e-3, warmup: 20, betas: [0.9, 0.99]}",
        "discriminator={start: 400, generator_start: 600, ramp: 100, weight: 0.05}",
        "loss.pixel.kind=l2",
        "loss.pixel.weight=10",
        "loss.perceptual.weight=0.1",
    )
    batch = batches_of(run, recipe, 1)[0]
    for step in range(steps):
        values = train_step(run, batch, step)
    assert {"pixel", "perceptual", "rate", "generator", "discriminator"} <= values.keys()
    with torch.no_grad():
        error = (run.autoencoder(batch[0].image).reconstruction - batch[0].image).square().mean()
    psnr = 10 * torch.log10(4 / error)  # range [-1, 1]
    assert psnr > 35
