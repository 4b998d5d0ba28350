"""The gradient of the objective against the formulation that everybody writes: build the total, call backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.adversarial import DiscriminatorConfig, PatchAdversary
from ldm_vae.losses.objective import LossConfig, Objective, build_heads, build_objective
from ldm_vae.losses.perceptual import LPIPS, PerceptualConfig
from ldm_vae.losses.pixel import LOG_VARIANCE_HEAD, PixelConfig
from ldm_vae.losses.rate import RateConfig
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.networks.network import Output
from ldm_vae.nn.discriminators.patch import PatchDiscriminator
from ldm_vae.noise import GivenNoise

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4, latent_channels=2)


def _batch(images: int = 2) -> Batch:
    image = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return Batch(image=image, label=None, key=[str(i) for i in range(images)], slot=torch.arange(images))


def _networks(learned_variance: bool = False) -> tuple[Autoencoder, PatchDiscriminator, LPIPS]:
    torch.manual_seed(0)
    loss = LossConfig(pixel=PixelConfig(learned_variance=learned_variance))
    model = Autoencoder(CONFIG, build_heads(loss)).double()
    discriminator = PatchDiscriminator(3, channels=8, layers=2).double()
    return model, discriminator, LPIPS("alex").double()


def _objective(
    model: Autoencoder, lpips: LPIPS | None, loss: LossConfig, adversarial: DiscriminatorConfig | None
) -> Objective:
    adversaries = [] if adversarial is None else [PatchAdversary(adversarial)]
    frozen = {} if lpips is None else {"perceptual": lpips}
    return build_objective(loss, adversaries, frozen, model.anchors, reduce=lambda value: value)


def _forward(model: Autoencoder, batch: Batch) -> Output:
    noise = torch.randn(model.latent_shape(batch.image), generator=torch.Generator().manual_seed(2)).double()
    output = model(batch.image, noise=GivenNoise(noise))
    assert isinstance(output, Output)
    return output


def _direct(
    model: Autoencoder, lpips: LPIPS, critic: Callable[[Tensor], Tensor], batch: Batch, loss: LossConfig, factor: float
) -> Tensor:
    """CompVis' total, in their words: sums over elements, mean over images, weight from gradients of the last layer."""
    output = _forward(model, batch)
    elements = batch.image[0].numel()
    pixel = (output.reconstruction - batch.image).abs().sum() / len(batch.image)
    perceptual = lpips(output.reconstruction, batch.image).mean() * elements
    nll = loss.pixel.weight * pixel + loss.perceptual.weight * perceptual
    if LOG_VARIANCE_HEAD in model.heads:
        log_variance = model.heads[LOG_VARIANCE_HEAD].value
        nll = nll / log_variance.exp() + elements * log_variance
    mean, logvar = output.posterior.stats["mean"], output.posterior.stats["logvar"]
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / len(batch.image)
    total = nll + loss.rate.weight * kl
    if factor:
        generator = -critic(output.reconstruction).mean()
        last = model.decoder.conv_out.weight
        nll_gradient = torch.autograd.grad(nll, last, retain_graph=True)[0]
        generator_gradient = torch.autograd.grad(generator, last, retain_graph=True)[0]
        weight = (nll_gradient.norm() / (generator_gradient.norm() + 1e-4)).clamp(0, 1e4).detach()
        total = total + factor * weight * generator
    return total


@pytest.mark.parametrize("learned_variance", [False, True])
@pytest.mark.parametrize("step", [0, 3, 10])
def test_gradient_equals_the_direct_formulation(step: int, learned_variance: bool) -> None:
    model, discriminator, lpips = _networks(learned_variance)
    loss = LossConfig(
        pixel=PixelConfig(weight=0.7, learned_variance=learned_variance),
        perceptual=PerceptualConfig(network="alex", weight=0.9),
        rate=RateConfig(weight=0.01),
    )
    adversarial = DiscriminatorConfig(start=0, generator_start=2, ramp=4, weight=0.5)
    objective = _objective(model, lpips, loss, adversarial)
    batch = _batch()

    critics = {"discriminator": discriminator.requires_grad_(False)}
    losses = objective(_forward(model, batch), batch, critics, step)
    torch.autograd.backward(losses.roots, losses.gradients)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    factor = 0.5 * {0: 0.0, 3: 0.25, 10: 1.0}[step]
    total = _direct(model, lpips, discriminator, batch, loss, factor)
    total.backward()
    assert losses.values["total"].item() * batch.image[0].numel() == pytest.approx(total.item(), rel=1e-12)
    assert ("generator" in losses.values) == (factor > 0)  # the path under test was taken
    for name, parameter in model.named_parameters():
        assert ours[name] is not None and parameter.grad is not None
        # float64, another order of sums
        torch.testing.assert_close(
            ours[name], parameter.grad, rtol=1e-9, atol=1e-9 * parameter.grad.abs().max().item() + 1e-12
        )
    assert parameter.grad.abs().sum() > 0


def test_the_learned_log_variance_reaches_its_optimum() -> None:
    """d/ds (a / e^s + n s) = 0 at e^s = a / n: the mean error per element."""
    model, _, _ = _networks(learned_variance=True)
    log_variance = model.heads[LOG_VARIANCE_HEAD].value
    loss = LossConfig(pixel=PixelConfig(learned_variance=True), rate=RateConfig(weight=0.0))
    objective = _objective(model, None, loss, None)
    batch = _batch()
    optimizer = torch.optim.Adam([log_variance], lr=0.05)
    for step in range(300):
        optimizer.zero_grad()
        losses = objective(_forward(model, batch), batch, {}, step)
        torch.autograd.backward(losses.roots, losses.gradients)
        optimizer.step()
    # Adam at a constant rate keeps within a few of its steps of the optimum
    assert log_variance.exp().item() == pytest.approx(losses.values["pixel"].item(), rel=0.02)


def test_a_term_that_is_off_is_absent_and_the_critic_is_not_called() -> None:
    model, _, _ = _networks()
    loss = LossConfig(rate=RateConfig(weight=0.0))
    adversarial = DiscriminatorConfig(start=0, generator_start=5)
    objective = _objective(model, None, loss, adversarial)

    batch = _batch()
    losses = objective(_forward(model, batch), batch, {}, step=4)  # the discriminator is not even looked for
    assert losses.values.keys() == {"pixel", "total"}
    assert objective.adversaries[0].learns(4)


def test_the_perceptual_term_has_a_gradient() -> None:
    model, _, lpips = _networks()
    loss = LossConfig(
        pixel=PixelConfig(weight=0.0), perceptual=PerceptualConfig(network="alex"), rate=RateConfig(weight=0.0)
    )
    objective = _objective(model, lpips, loss, None)
    batch = _batch()
    losses = objective(_forward(model, batch), batch, {}, step=0)
    assert losses.values.keys() == {"perceptual", "total"}
    assert losses.gradients[0].abs().sum() > 0
