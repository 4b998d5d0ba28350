from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.losses.adversarial import (
    AdversarialKind,
    DiscriminatorConfig,
    adversarial_factor,
    discriminator_loss,
    generator_loss,
)
from ldm_vae.recipe import validate

pytestmark = pytest.mark.numerical

KINDS: list[AdversarialKind] = ["hinge", "vanilla", "non_saturating"]


# taming/modules/losses/vqperceptual.py of CompVis/taming-transformers, word for word.
def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    loss_real = torch.mean(F.relu(1.0 - logits_real))
    loss_fake = torch.mean(F.relu(1.0 + logits_fake))
    return 0.5 * (loss_real + loss_fake)


def vanilla_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    return 0.5 * (
        torch.mean(torch.nn.functional.softplus(-logits_real)) + torch.mean(torch.nn.functional.softplus(logits_fake))
    )


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real, fake = (2 * torch.randn(3, 1, 4, 5, generator=generator) for _ in range(2))
    return real.double(), fake.double()  # in which sums in another order are equal to far below 1e-7


def test_means_equal_compvis(logits: tuple[Tensor, Tensor]) -> None:
    real, fake = logits
    torch.testing.assert_close(discriminator_loss(real, fake, "hinge").mean(), hinge_d_loss(real, fake))
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla").mean(), vanilla_d_loss(real, fake))
    of_compvis: list[AdversarialKind] = ["hinge", "vanilla"]
    for kind in of_compvis:
        torch.testing.assert_close(generator_loss(fake, kind).mean(), -torch.mean(fake))


def test_non_saturating_is_cross_entropy_on_both_sides(logits: tuple[Tensor, Tensor]) -> None:
    real, fake = logits
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    cross_entropy = F.binary_cross_entropy_with_logits(torch.cat([real, fake]), torch.cat([ones, zeros]))
    torch.testing.assert_close(discriminator_loss(real, fake, "non_saturating").mean(), cross_entropy)
    fooled = F.binary_cross_entropy_with_logits(fake, ones)
    torch.testing.assert_close(generator_loss(fake, "non_saturating").mean(), fooled)


@pytest.mark.parametrize("kind", KINDS)
def test_one_value_per_image(logits: tuple[Tensor, Tensor], kind: AdversarialKind) -> None:
    real, fake = logits
    discriminator, generator = discriminator_loss(real, fake, kind), generator_loss(fake, kind)
    for i in range(3):
        torch.testing.assert_close(discriminator[i], discriminator_loss(real[i : i + 1], fake[i : i + 1], kind)[0])
        torch.testing.assert_close(generator[i], generator_loss(fake[i : i + 1], kind)[0])
    assert discriminator.shape == generator.shape == (3,)


@pytest.mark.parametrize("kind", KINDS)
def test_types(logits: tuple[Tensor, Tensor], kind: AdversarialKind) -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        real, fake = (value.to(dtype) for value in logits)
        assert discriminator_loss(real, fake, kind).dtype == generator_loss(fake, kind).dtype == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_pull_the_fake_logits_apart(logits: tuple[Tensor, Tensor], kind: AdversarialKind) -> None:
    _, fake = logits
    fake = (0.4 * fake).requires_grad_()  # inside the hinge's margin for the most part
    (down,) = torch.autograd.grad(discriminator_loss(fake.detach(), fake, kind).sum(), fake)
    (up,) = torch.autograd.grad(generator_loss(fake, kind).sum(), fake)
    assert (down >= 0).all() and down.sum() > 0  # descending lowers the logits
    assert (up < 0).all()


def test_extreme_logits_stay_finite() -> None:
    real = torch.tensor([1e4, -1e4]).view(2, 1, 1, 1).requires_grad_()
    for kind in KINDS:
        loss = discriminator_loss(real, real, kind) + generator_loss(real, kind)
        (gradient,) = torch.autograd.grad(loss.sum(), real)
        assert loss.isfinite().all() and gradient.isfinite().all()


def test_factor_is_zero_then_rises_without_a_jump() -> None:
    config = DiscriminatorConfig(start=5, generator_start=10, ramp=20)
    factors = [adversarial_factor(config, step) for step in range(60)]
    assert factors[:11] == [0.0] * 11
    assert factors[30:] == [1.0] * 30
    assert factors[20] == 0.5
    assert max(after - before for before, after in pairwise(factors)) == pytest.approx(1 / 20)


def test_factor_without_a_ramp_is_compvis_step() -> None:
    config = DiscriminatorConfig(start=3, generator_start=7)
    assert [adversarial_factor(config, step) for step in range(10)] == [0.0] * 7 + [1.0] * 3
    assert adversarial_factor(DiscriminatorConfig(), 0) == 1.0


def test_generator_may_not_start_first() -> None:
    with pytest.raises(UserError, match="generator_start 3 must not be before start 4"):
        validate(DiscriminatorConfig, {"start": 4, "generator_start": 3}, "test")


def test_a_discriminator_without_a_weight_is_refused_with_the_way_to_have_none() -> None:
    with pytest.raises(
        UserError, match="weight 0 leaves nothing for a discriminator to do: write `discriminator: null"
    ):
        validate(DiscriminatorConfig, {"weight": 0.0}, "test")


@pytest.mark.parametrize(
    "values",
    [{"loss": "wasserstein"}, {"norm": "spectral"}, {"layers": 0}, {"weight": -0.1}, {"ramp": -1}, {"order": "both"}],
)
def test_impossible_configurations(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        validate(DiscriminatorConfig, values, "test")
