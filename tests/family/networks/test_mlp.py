"""The vector VAE: it trains as every network does, is no codec, and without hidden layers reaches probabilistic PCA."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy.stats import multivariate_normal

from ldm_vae import LatentCodec, UserError
from ldm_vae.data.stream.batch import Batch
from ldm_vae.family.likelihoods.gaussian import GaussianLikelihoodConfig
from ldm_vae.family.measures import Measures
from ldm_vae.family.networks.mlp import Mlp, MlpConfig
from ldm_vae.interop.load import load_model
from ldm_vae.noise import GivenNoise, SlotNoise
from tests.train import seams


@pytest.mark.parametrize("bound", [(), ("loss.bound=iwae", "loss.samples=3")], ids=["elbo", "iwae"])
def test_trains_on_one_and_two_processes_and_resumes(
    bound: tuple[str, ...], family: tuple[str, ...], recipe: Path, tmp_path: Path
) -> None:
    seams.holds(None, recipe, tmp_path, *family, *bound)
    rows = [seams.validated(tmp_path / name) for name in ("one", "two", "resumed")]
    assert rows[0] == rows[2]
    assert rows[0].keys() == rows[1].keys() >= {"validation/bound", "validation/rate_unit_3", "validation/images"}
    assert rows[1] == {name: pytest.approx(value, rel=1e-6, abs=1e-6) for name, value in rows[0].items()}
    assert (tmp_path / "one/samples/step_00000006.png").is_file()
    with pytest.raises(UserError, match="kind mlp"):
        LatentCodec.load(tmp_path / "one")
    assert isinstance(load_model(tmp_path / "one").model, Mlp)


def linear(data: torch.Tensor, units: int) -> Mlp:
    """A linear VAE of one learned variance, trained on all of the data (N, 1, 4, 4), in float64."""
    torch.manual_seed(0)
    likelihood = GaussianLikelihoodConfig(variance="shared")
    model = Mlp(MlpConfig(side=4, latent_channels=units, widths=(), likelihood=likelihood)).double()
    steps, generator = 4000, torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        drawn = torch.randn(len(data), units, 1, 1, generator=generator, dtype=torch.float64)
        output = model(data, noise=GivenNoise(drawn))
        loss = (output.posterior.rate - model.likelihood.log_prob(output.parameters, output.target)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.numerical
def test_a_linear_vae_reaches_the_likelihood_of_probabilistic_pca() -> None:
    """Exact, by Tipping & Bishop 1999, eq. 7 and 8: the greatest likelihood of N(mu, W W^T + v I) on these data."""
    generator = torch.Generator().manual_seed(3)
    factors = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    loadings = torch.randn(3, 16, generator=generator, dtype=torch.float64) * 0.3
    data = factors @ loadings + 0.1 * torch.randn(300, 16, generator=generator, dtype=torch.float64) + 0.2
    covariance = torch.cov(data.T, correction=0)
    spectrum, vectors = torch.linalg.eigh(covariance)
    variance = spectrum[:-3].mean()
    weights = vectors[:, -3:] * (spectrum[-3:] - variance).sqrt()
    exact = multivariate_normal(data.mean(dim=0), weights @ weights.T + variance * torch.eye(16)).logpdf(data).mean()

    model = linear(data.view(-1, 1, 4, 4), 3)
    measures = Measures(model)
    with torch.no_grad():
        batch = Batch(data.view(-1, 1, 4, 4), None, [""] * 300, torch.arange(300))
        found = measures.summary(measures.sums(batch))
    # 0.1 nats: the noise of 5 samples of 300 images, and what Adam leaves
    assert found["bound"] == pytest.approx(exact, abs=0.1)
    assert found["importance_bound"] == pytest.approx(exact, abs=0.1)  # whose posterior is exact: all weights are equal
    assert found["active_units"] == 3
    assert found["bits_per_dimension"] == pytest.approx((-found["bound"] / 16 - math.log(2 / 255)) / math.log(2))

    two = Measures(linear(data.view(-1, 1, 4, 4), 2))
    with torch.no_grad():
        assert two.summary(two.sums(batch))["bound"] < exact - 1  # of one unit less: what a wrong model gives


def test_more_samples_raise_the_bound_in_expectation() -> None:
    """Of a posterior that is far from exact: an interval of the paired difference over held-out images."""
    torch.manual_seed(0)
    model = Mlp(MlpConfig(side=4, latent_channels=2, widths=(8,))).double().eval()
    image = torch.rand(4000, 1, 4, 4, dtype=torch.float64) * 2 - 1
    bounds = []
    for samples in (1, 5, 50):
        with torch.no_grad():
            output = model(image, noise=SlotNoise(1, 0, range(4000)), samples=samples)
            ratio = model.likelihood.log_prob(output.parameters, output.target) - output.posterior.sampled_rate
            bounds.append(ratio.view(4000, samples).logsumexp(dim=1) - math.log(samples))
    for fewer, more in pairwise(bounds):
        difference = more - fewer
        assert difference.mean() > 3 * difference.std() / math.sqrt(len(difference))


def test_the_sampled_rate_is_the_rate_in_the_mean() -> None:
    torch.manual_seed(0)
    model = Mlp(MlpConfig(side=4, latent_channels=2, widths=(8,))).double().eval()
    with torch.no_grad():
        output = model(torch.rand(1, 1, 4, 4, dtype=torch.float64), noise=SlotNoise(0, 0, [0]), samples=40_000)
    sampled = output.posterior.sampled_rate
    assert abs(sampled.mean() - output.posterior.rate[0]) < 4 * sampled.std() / 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("model.side=16",), "32x32 pixels for a network of 16x16"),
        (("loss.bound=iwae", "loss.rate.weight=0.5"), "loss.bound: iwae needs"),
        (("loss.likelihood.weight=0",), "nothing asks for a reconstruction"),
        (("model={kind: kl}", "data.image.channels=3"), "kind kl gives a picture and no distribution"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    changes: tuple[str, ...], message: str, family: tuple[str, ...], recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        seams.train_here(recipe, tmp_path / "run", *family, *changes)
