"""The gradient of the objective against the formulation that everybody writes: build the total, call backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.adversarial import DiscriminatorConfig, PatchAdversary
from ldm_vae.losses.objective import LossConfig, Objective, WeightedTerm, build_heads, build_objective
from ldm_vae.losses.perceptual import LPIPS, PerceptualConfig
from ldm_vae.losses.pixel import LOG_VARIANCE_HEAD, LogVariance, PixelConfig
from ldm_vae.losses.rate import RateConfig
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.networks.network import Output
from ldm_vae.nn.discriminators.patch import PatchDiscriminator
from ldm_vae.noise import GivenNoise, SlotNoise

pytestmark = pytest.mark.numerical

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


def _log_variance(model: Autoencoder) -> nn.Parameter:
    head = model.heads[LOG_VARIANCE_HEAD]
    assert isinstance(head, LogVariance)
    return head.value


def _direct(
    model: Autoencoder,
    lpips: LPIPS,
    critic: Callable[[Tensor], Tensor] | None,
    batch: Batch,
    loss: LossConfig,
    factor: float,
) -> Tensor:
    """CompVis' total, in their words: sums over elements, mean over images, weight from gradients of the last layer."""
    output = _forward(model, batch)
    elements = batch.image[0].numel()
    pixel = (output.reconstruction - batch.image).abs().sum() / len(batch.image)
    perceptual = lpips(output.reconstruction, batch.image).mean() * elements
    nll = loss.pixel.weight * pixel + loss.perceptual.weight * perceptual
    if LOG_VARIANCE_HEAD in model.heads:
        log_variance = _log_variance(model)
        nll = nll / log_variance.exp() + elements * log_variance
    mean, logvar = output.posterior.stats["mean"], output.posterior.stats["logvar"]
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / len(batch.image)
    total = nll + loss.rate.weight * kl
    if factor:
        assert critic is not None
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
    assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_the_learned_log_variance_reaches_its_optimum() -> None:
    """d/ds (a / e^s + n s) = 0 at e^s = a / n: the mean error per element."""
    model, _, _ = _networks(learned_variance=True)
    log_variance = _log_variance(model)
    loss = LossConfig(pixel=PixelConfig(learned_variance=True), rate=RateConfig(weight=0.0))
    objective = _objective(model, None, loss, None)
    batch = _batch()
    optimizer = torch.optim.Adam([log_variance], lr=0.05)
    for step in range(100):
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


class ToAnImage:
    """A stand-in for alignment: half the square of what the encoder's last layer gives, and so a loss of the latent."""

    def __call__(self, output: Output, batch: Batch, step: int) -> Tensor:
        return 0.5 * (output.posterior.stats["mean"] - 1.0).square().flatten(1).sum(dim=1)


def test_a_term_of_the_latent_is_balanced_at_the_encoders_last_layer() -> None:
    """Against the formulation of VA-VAE (LightningDiT): norms of two `autograd.grad` at `encoder.conv_out.weight`."""
    model, _, lpips = _networks()
    loss = LossConfig(perceptual=PerceptualConfig(network="alex"), rate=RateConfig(weight=0.01))
    objective = _objective(model, lpips, loss, None)
    objective.regularizers = [
        *objective.regularizers,
        WeightedTerm("aligned", ToAnImage(), lambda step: 0.3, "encoder"),
    ]
    batch = _batch()
    losses = objective(_forward(model, batch), batch, {}, 0)
    torch.autograd.backward(losses.roots, losses.gradients)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    output = _forward(model, batch)
    last = model.encoder.conv_out.weight
    loss_of_latent = ToAnImage()(output, batch, 0).mean()
    total = _direct(model, lpips, None, batch, loss, 0.0)
    elements = batch.image[0].numel()
    nll = (output.reconstruction - batch.image).abs().sum() / len(batch.image)
    nll = nll + lpips(output.reconstruction, batch.image).mean() * elements
    norms = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (nll, loss_of_latent)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
    (total + 0.3 * weight * loss_of_latent).backward()
    assert weight > 0 and weight != 1e4
    for name, parameter in model.named_parameters():
        assert ours[name] is not None and parameter.grad is not None
        torch.testing.assert_close(
            ours[name], parameter.grad, rtol=1e-9, atol=1e-9 * parameter.grad.abs().max().item() + 1e-12
        )


class ImportanceWeighted:
    """IWAE: the log of the mean likelihood over K samples (Burda et al. 2015), by its gradient's weights."""

    samples = 3

    def __call__(self, values: Tensor, total: Tensor) -> Tensor:
        weights = torch.softmax(-total.view(-1, self.samples), dim=1)
        return (weights * values.view(-1, self.samples)).sum(dim=1).mean()


def test_a_bound_of_several_samples_is_a_reduction() -> None:
    model, _, _ = _networks()
    loss = LossConfig(pixel=PixelConfig(kind="l2", weight=0.01), rate=RateConfig(weight=1.0))
    objective = _objective(model, None, loss, None)
    objective.reduction = ImportanceWeighted()
    batch = _batch()
    noise = SlotNoise(0, 0, batch.slot)
    output = model(batch.image, noise=noise, samples=objective.samples)
    losses = objective(output, batch, {}, 0)
    torch.autograd.backward(losses.roots, losses.gradients)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    output = model(batch.image, noise=noise, samples=3)
    cost = 0.01 * (output.reconstruction - output.target).square().flatten(1).sum(dim=1) + output.posterior.rate
    (-torch.logsumexp(-cost.view(-1, 3), dim=1)).mean().backward()
    for name, parameter in model.named_parameters():
        assert ours[name] is not None and parameter.grad is not None
        torch.testing.assert_close(
            ours[name], parameter.grad, rtol=1e-9, atol=1e-9 * parameter.grad.abs().max().item() + 1e-12
        )


def test_a_balanced_term_of_a_frozen_encoder_moves_nothing() -> None:
    """In the training of the decoder alone, no gradient reaches the anchor: there is nothing to balance."""
    model, _, _ = _networks()
    for part in (model.encoder, model.quant_conv):
        assert part is not None
        part.requires_grad_(False)
    objective = _objective(model, None, LossConfig(rate=RateConfig(weight=0.01)), None)
    plain = objective(_forward(model, _batch()), _batch(), {}, 0)
    objective.regularizers = [
        *objective.regularizers,
        WeightedTerm("aligned", ToAnImage(), lambda step: 0.3, "encoder"),
    ]
    losses = objective(_forward(model, _batch()), _batch(), {}, 0)
    assert torch.equal(losses.gradients[0], plain.gradients[0]) and len(losses.roots) == 1
    assert losses.values["aligned"] > 0


def test_what_is_felt_in_the_latent_is_not_balanced_at_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = _networks()
    monkeypatch.setattr(PatchAdversary, "felt", "latent")
    with pytest.raises(ValueError, match="does not pass the decoder"):
        _objective(model, None, LossConfig(), DiscriminatorConfig(adaptive=True))


class Squashed:
    """A likelihood whose mean is no linear function of its parameters."""

    def channels(self, image_channels: int) -> int:
        return image_channels

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.tanh()


def test_the_leaf_is_what_the_decoder_gives_and_the_picture_is_its_mean() -> None:
    model, discriminator, lpips = _networks()
    model.likelihood = Squashed()
    loss = LossConfig(perceptual=PerceptualConfig(network="alex"), rate=RateConfig(weight=0.01))
    objective = _objective(model, lpips, loss, DiscriminatorConfig(weight=0.5))
    batch = _batch()
    critics = {"discriminator": discriminator.requires_grad_(False)}
    losses = objective(_forward(model, batch), batch, critics, 10)
    torch.autograd.backward(losses.roots, losses.gradients)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    _direct(model, lpips, discriminator, batch, loss, 0.5).backward()
    assert losses.values["generator_weight"] > 0
    for name, parameter in model.named_parameters():
        assert ours[name] is not None and parameter.grad is not None
        torch.testing.assert_close(
            ours[name], parameter.grad, rtol=1e-9, atol=1e-9 * parameter.grad.abs().max().item() + 1e-12
        )
