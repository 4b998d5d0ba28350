"""The first weights `average` against what they imitate: average pooling and repetition."""

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.noise import GivenNoise
from train.initialise import initialise_average

pytestmark = pytest.mark.numerical

CONFIG = AutoencoderConfig(
    block_out_channels=(32, 64, 64), layers_per_block=1, norm_groups=8, latent_channels=3, mid_attention=False
)


def _photograph() -> torch.Tensor:
    image = torch.from_numpy(data.astronaut()[128:256, 192:320]).permute(2, 0, 1)[None]
    return image.double() / 127.5 - 1


def test_an_untrained_autoencoder_averages_and_repeats() -> None:
    torch.manual_seed(0)
    image = _photograph()
    model = Autoencoder(CONFIG).double()
    averaged = F.interpolate(F.avg_pool2d(image, 4), scale_factor=4.0, mode="nearest")
    before = (model(image).reconstruction - averaged).abs().mean()
    initialise_average(model)
    output = model(image)
    after = (output.reconstruction - averaged).abs().mean()
    # GroupNorm takes the mean and deviation of each picture off, and the free channels add a little noise
    assert after < 0.1 < before
    assert output.posterior.stats["logvar"].abs().min() > 7  # little noise in the latent at the start


def test_every_parameter_has_a_gradient() -> None:
    """No channel is dead: two steps are enough for the gradient to reach what stands behind a zero convolution."""
    torch.manual_seed(0)
    model = Autoencoder(CONFIG).double()
    initialise_average(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(_photograph(), noise=GivenNoise(torch.randn(1, 3, 32, 32, dtype=torch.float64)))
        (output.reconstruction.square().mean() + 1e-6 * output.posterior.rate.mean()).backward()
        optimizer.step()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_widths_without_room_are_refused() -> None:
    with pytest.raises(UserError, match="needs 4 channels in every norm group"):
        initialise_average(Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1)))
