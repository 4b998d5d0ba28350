"""The controls of the rate against the formulation that everybody writes, which needs the whole batch at once."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ldm_vae.bottlenecks.base import Latent
from ldm_vae.bottlenecks.gaussian import ACTIVE_VARIANCE, DiagonalGaussian, GaussianConfig
from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.objective import LossConfig, Losses, build_objective
from ldm_vae.losses.rate import Capacity, FreeBits, RateConfig, rate_control, rate_weight
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.networks.network import Output
from ldm_vae.noise import SlotNoise

pytestmark = pytest.mark.numerical

WEIGHT = 0.3
CONFIG = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4, latent_channels=3)
Control = Callable[[Tensor], Tensor]  # (B, groups), nats of the whole batch -> what is charged, a scalar


def _batch() -> Batch:
    """Four images, two plain ones and two of high contrast, so that two ranks have different rates."""
    image = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    image[:2] *= 0.05
    return Batch(image=image, label=None, key=list("abcd"), slot=torch.arange(4))


def _part(batch: Batch, rank: int) -> Batch:
    mine = slice(2 * rank, 2 * rank + 2)
    return Batch(image=batch.image[mine], label=None, key=batch.key[mine], slot=batch.slot[mine])


def _model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CONFIG).double()


def _forward(model: Autoencoder, batch: Batch) -> Output:
    output = model(batch.image, noise=SlotNoise(0, 0, batch.slot))
    assert isinstance(output, Output)
    return output


def _rates(output: Output) -> Tensor:
    """(B, groups), nats, by torch.distributions."""
    mean, logvar = output.posterior.stats["mean"], output.posterior.stats["logvar"]
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return kl_divergence(Normal(mean, (0.5 * logvar).exp()), prior).sum(dim=(2, 3))


def _gradients(
    model: Autoencoder, batch: Batch, config: RateConfig, reduce: Callable[[Tensor], Tensor], step: int
) -> tuple[dict[str, Tensor], Losses]:
    """What a rank gets from the objective."""
    model.zero_grad()
    losses = build_objective(LossConfig(rate=config), [], {}, model.anchors, reduce)(
        _forward(model, batch), batch, {}, step
    )
    torch.autograd.backward(losses.roots, losses.gradients)
    return {name: _gradient(parameter) for name, parameter in model.named_parameters()}, losses


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def _direct(model: Autoencoder, batch: Batch, control: Control) -> tuple[dict[str, Tensor], float]:
    model.zero_grad()
    output = _forward(model, batch)
    pixel = (output.reconstruction - batch.image).abs().sum() / len(batch.image)
    total = pixel + WEIGHT * control(_rates(output))
    total.backward()
    return {name: _gradient(parameter) for name, parameter in model.named_parameters()}, total.item()


def _cases() -> list[tuple[RateConfig, Control, int]]:
    """Controls whose side, of a group or of the rate, differs between the ranks: on their own, they would be wrong."""
    means = torch.stack([_rates(_forward(_model(), _part(_batch(), rank))).detach().mean(dim=0) for rank in (0, 1)])
    both = means.mean(dim=0)
    free = float((means[0] + both)[1]) / 2  # the second group's side differs between the ranks
    assert (both > free).tolist() == [True, True, False] and (means > free)[:, 1].tolist() == [False, True]
    total = float(both.sum())
    # beyond and below the mean, but on the other side of one rank's
    beyond, below = (0.5 * (total + float(rank)) for rank in (means.sum(dim=1).max(), means.sum(dim=1).min()))
    assert means.sum(dim=1).min() < below < total < beyond < means.sum(dim=1).max()

    def held(capacity: float) -> Control:
        return lambda rates: (rates.sum(dim=1).mean() - capacity).abs()

    return [
        (
            RateConfig(weight=2 * WEIGHT, warmup=10, schedule="cosine", free_nats=free),
            lambda rates: rates.mean(dim=0).clamp(min=free).sum(),
            5,
        ),
        (RateConfig(weight=WEIGHT, capacity=beyond), held(beyond), 0),
        (RateConfig(weight=WEIGHT, capacity=below), held(below), 0),
        (RateConfig(weight=WEIGHT, capacity=4 * beyond, capacity_warmup=8), held(beyond), 2),
    ]


@pytest.mark.parametrize("case", range(4))
def test_a_control_is_that_of_the_whole_batch_on_one_rank_and_on_two(case: int) -> None:
    config, control, step = _cases()[case]
    model, batch = _model(), _batch()
    expected, total = _direct(model, batch, control)
    # float64, another order of sums
    atol = 1e-9 * max(float(value.abs().max()) for value in expected.values())
    one, losses = _gradients(model, batch, config, lambda value: value, step)
    for name, value in expected.items():
        torch.testing.assert_close(one[name], value, rtol=1e-9, atol=atol)
    rates = _rates(_forward(model, batch)).detach()
    assert losses.values["rate"].item() == pytest.approx(float(rates.sum(dim=1).mean()), rel=1e-12)
    assert losses.values["charged_rate"].item() == pytest.approx(float(control(rates)), rel=1e-12)
    assert losses.values["total"].item() * batch.image[0].numel() == pytest.approx(total, rel=1e-12)

    shares: list[Tensor] = []  # what each rank asks to be averaged

    def keep(value: Tensor) -> Tensor:
        shares.append(value)
        return value

    parts = [_part(batch, rank) for rank in (0, 1)]
    alone = [_gradients(model, part, config, keep, step)[0] for part in parts]
    assert len(shares) == 2 and not any(share.requires_grad for share in shares)
    average = torch.stack(shares).mean(dim=0)
    together = [_gradients(model, part, config, lambda value: average, step) for part in parts]
    for name, value in expected.items():
        torch.testing.assert_close((together[0][0][name] + together[1][0][name]) / 2, value, rtol=1e-9, atol=atol)
    logged = [float(losses.values["charged_rate"]) for _, losses in together]
    assert sum(logged) / 2 == pytest.approx(float(control(rates)), rel=1e-12)
    last = "encoder.conv_out.weight"  # each rank on its own is wrong: the case does depend on the reduced mean
    assert float(((alone[0][last] + alone[1][last]) / 2 - expected[last]).abs().max()) > 1e-3 * float(
        expected[last].norm()
    )


def _priced(posterior: Latent) -> Output:
    """An output of which only the price is read."""
    none = cast(Any, None)
    return Output(none, none, posterior.z, posterior, {}, {}, {}, none)


def test_a_group_is_charged_above_the_free_nats_of_its_mean_and_not_below() -> None:
    """In two positions, the first group has 1 nat in the mean (0 and 2), the second 5 (8 and 2), the third 3."""
    nats = torch.tensor([[[0.0, 0.0], [4.0, 4.0], [1.0, 2.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]]])[..., None]
    nats.requires_grad_()
    rows = FreeBits(3.0, lambda value: value)(_priced(Latent(nats, nats, {})), cast(Batch, None), 0)
    assert rows.tolist() == [3.0 + 8.0 + 3.0, 3.0 + 2.0 + 3.0]
    rows.mean().backward()
    expected = torch.zeros(2, 3, 2, 1)
    expected[:, 1] = 0.5
    assert nats.grad is not None and torch.equal(nats.grad, expected)


def test_the_capacity_rises_and_the_rate_follows_it_from_both_sides() -> None:
    nats = torch.tensor([[1.0, 2.0], [4.0, 5.0]], requires_grad=True)  # a mean rate of 6
    control = Capacity(16.0, 8, lambda value: value)
    for step, capacity in enumerate([0, 2, 4, 6, 8, 10, 12, 14, 16, 16]):
        value = control(_priced(Latent(nats, nats, {})), cast(Batch, None), step).mean()
        (gradient,) = torch.autograd.grad(value, nats)
        assert value.item() == abs(6 - capacity)
        assert torch.equal(gradient, torch.full_like(nats, 0.5 if capacity < 6 else -0.5 if capacity > 6 else 0.0))


def test_without_a_control_the_rate_is_the_one_term_and_the_weight_is_the_ramp() -> None:
    assert rate_control(RateConfig(), lambda value: value) is None
    model, batch = _model(), _batch()
    _, losses = _gradients(model, batch, RateConfig(), lambda value: value, 0)
    assert losses.values.keys() == {"pixel", "rate", "total"}
    config = RateConfig(weight=0.1, warmup=7)
    assert [rate_weight(config, step) for step in range(9)] == [0.1 * min(step / 7, 1.0) for step in range(9)]


def test_the_weight_follows_its_schedule() -> None:
    config = RateConfig(weight=2.0, warmup=20, schedule="cyclical", cycles=2, rising=0.5)
    cycle = [0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert [rate_weight(config, step) for step in range(25)] == pytest.approx(cycle + cycle + [2.0] * 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0, "free_nats": 1}, "give it a weight"),
        ({"weight": 0, "capacity": 1}, "give it a weight"),
        ({"capacity": 1, "free_nats": 1}, "keep one of them"),
        ({"capacity_warmup": 5}, "is for a capacity"),
        ({"schedule": "constant", "warmup": 5}, "set warmup to 0"),
        ({"schedule": "sigmoid"}, "give warmup"),
        ({"schedule": "cyclical"}, "give warmup"),
        ({"schedule": "cyclical", "warmup": 7, "cycles": 4, "rising": 0.5}, "less than a step"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RateConfig(**fields)


@pytest.mark.parametrize(("free", "active"), [(0.0, 0), (0.5, 4)])
def test_free_bits_keep_units_active_that_collapse_without(free: float, active: int) -> None:
    """A linear VAE beside noise of variance 1: with a weight of beta, it is probabilistic PCA of noise beta.

    That keeps the directions whose variance is above beta (Tipping and Bishop 1999), and here the largest is 10.
    """
    draw = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.5, 2.0, 1.5])
    axes = torch.linalg.qr(torch.randn(8, 4, generator=draw)).Q
    data = torch.randn(512, 4, generator=draw) * scales @ axes.T + torch.randn(512, 8, generator=draw)
    torch.manual_seed(0)
    encoder, decoder, bottleneck = nn.Linear(8, 8), nn.Linear(4, 8), DiagonalGaussian(GaussianConfig())
    config = RateConfig(weight=50.0, free_nats=free)
    control = rate_control(config, lambda value: value)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 600)  # to rest at the edge where the price begins
    for step in range(600):
        latent = bottleneck(encoder(data)[..., None, None], SlotNoise(0, step, torch.arange(len(data))))
        misfit = 0.5 * (data - decoder(latent.z.flatten(1))).square().sum(dim=1).mean()
        charged = latent.rate if control is None else control(_priced(latent), cast(Batch, None), step)
        optimizer.zero_grad()
        (misfit + rate_weight(config, step) * charged.mean()).backward()
        optimizer.step()
        decay.step()
    mean = latent.stats["mean"].flatten(1).detach()
    assert int((mean.var(dim=0) > ACTIVE_VARIANCE).sum()) == active
    used = torch.full((4,), free)  # all that is free, and no more: Adam's steps end close to it
    torch.testing.assert_close(latent.rates.mean(dim=0), used, rtol=0, atol=0.05)
