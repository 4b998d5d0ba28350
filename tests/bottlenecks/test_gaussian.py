import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ldm_vae.bottlenecks.gaussian import DiagonalGaussian, GaussianConfig, gaussian_kl
from ldm_vae.noise import GivenNoise

pytestmark = pytest.mark.numerical


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_kl_equals_torch_distributions() -> None:
    mean, logvar = draw(2, 4, 3, 5), 3.0 * draw(2, 4, 5, 3).transpose(2, 3)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), standard)
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected)  # float64, the same formula in another order


def test_rate_is_the_sum_per_image_in_nats() -> None:
    hidden = draw(2, 8, 3, 5)
    latent = DiagonalGaussian(GaussianConfig())(hidden)
    mean, logvar = hidden.chunk(2, dim=1)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), standard).flatten(1).sum(1)
    torch.testing.assert_close(latent.rate, expected)


def test_sample_has_the_distribution_of_its_moments() -> None:
    hidden = draw(1, 2, 1, 1).expand(200_000, 2, 1, 1)
    posterior = Normal(hidden[0, 0, 0, 0], (0.5 * hidden[0, 1, 0, 0]).exp())
    z = DiagonalGaussian(GaussianConfig())(hidden, GivenNoise(draw(200_000, 1, 1, 1))).z
    # Standard errors of mean and deviation of n draws: sigma / sqrt(n) and sigma / sqrt(2n); five of them.
    error = 5.0 * posterior.stddev.item() / 200_000**0.5
    assert abs(z.mean() - posterior.mean) < error and abs(z.std() - posterior.stddev) < error


def test_sample_is_mean_plus_deviation_times_noise_and_mode_is_the_mean() -> None:
    hidden, noise = draw(2, 8, 3, 5), draw(2, 4, 3, 5).flip(0)
    bottleneck = DiagonalGaussian(GaussianConfig())
    posterior = Normal(hidden[:, :4], (0.5 * hidden[:, 4:]).exp())
    torch.testing.assert_close(bottleneck(hidden, GivenNoise(noise)).z, posterior.mean + posterior.stddev * noise)
    assert torch.equal(bottleneck(hidden).z, hidden[:, :4])


def test_clamp_is_that_of_the_recipe_and_stops_the_gradient() -> None:
    hidden = torch.tensor([0.0, 50.0]).reshape(1, 2, 1, 1).requires_grad_()
    latent = DiagonalGaussian(GaussianConfig(logvar_range=(-5.0, 2.0)))(hidden)
    assert latent.stats["logvar"].item() == 2.0
    latent.rate.sum().backward()
    assert hidden.grad is not None and hidden.grad[0, 1] == 0.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_computed_in_at_least_float32(given: torch.dtype, expected: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latent = DiagonalGaussian(GaussianConfig())(draw(2, 8, 3, 5).to(given), GivenNoise(draw(2, 4, 3, 5).to(given)))
    assert {latent.z.dtype, latent.rate.dtype, *(value.dtype for value in latent.stats.values())} == {expected}
