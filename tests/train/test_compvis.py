"""Whole training steps against a plain formulation of CompVis' trainer.

It is AutoencoderKL.training_step and LPIPSWithDiscriminator.forward of CompVis/latent-diffusion (MIT), written out. One
thing differs: the second forward pass repeats the noise of the step.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.adversarial import DiscriminatorConfig
from ldm_vae.losses.perceptual import LPIPS
from tests.kl import autoencoder_in
from tests.train.conftest import Build, batches_of
from train.recipe import Recipe
from train.state import Run
from train.step import TRAIN_STEPS

pytestmark = pytest.mark.numerical

# Float64: another order of sums is all that is left. eps keeps Adam from enlarging the rounding of a gradient that is
# truly 0, such as that of the discriminator's last bias while all its patches are within the hinge's margin.
SETTINGS = (
    *("precision=float64", "optimizer.lr=1e-3", "optimizer.eps=1e-3", "optimizer.warmup=0", "optimizer.decay=constant"),
    *("discriminator.start=0", "discriminator.generator_start=0", "discriminator.ramp=0", "loss.rate.weight=1e-2"),
)
TOLERANCE = 1e-10
STEPS = 3


class CompVis:
    """Copies of a run's networks, with optimizers of their own."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        assert isinstance(recipe.discriminator, DiscriminatorConfig)
        self.run, self.config, self.rate_weight = run, recipe.discriminator, recipe.loss.rate.weight
        self.model = copy.deepcopy(autoencoder_in(run.autoencoder))
        self.discriminator = copy.deepcopy(run.critics["discriminator"])
        self.lpips = LPIPS("alex").double()
        lr, betas, eps = recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.eps
        self.opt_ae = torch.optim.Adam(self.model.parameters(), lr=lr, betas=betas, eps=eps)
        self.opt_disc = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=betas, eps=eps)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The reconstructions, and the mean over images of KL(q(z|x) || N(0, I))."""
        model = self.model
        assert model.quant_conv is not None and model.post_quant_conv is not None
        mean, logvar = model.quant_conv(model.encoder(batch.image).output).chunk(2, dim=1)
        logvar = torch.clamp(logvar, -30.0, 20.0)
        kl = 0.5 * torch.sum(torch.pow(mean, 2) + torch.exp(logvar) - 1.0 - logvar, dim=[1, 2, 3])
        z = mean + torch.exp(0.5 * logvar) * self.run.noise(batch, step).normal("noise", mean)
        return model.decoder(model.post_quant_conv(z)).output, torch.sum(kl) / kl.shape[0]

    def discriminator_loss(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """hinge_d_loss and vanilla_d_loss of taming-transformers."""
        if self.config.loss == "hinge":
            return 0.5 * (torch.mean(F.relu(1.0 - logits_real)) + torch.mean(F.relu(1.0 + logits_fake)))
        return 0.5 * (torch.mean(F.softplus(-logits_real)) + torch.mean(F.softplus(logits_fake)))

    def generator_loss(self, logits_fake: Tensor) -> Tensor:
        """-mean, as CompVis has it for hinge and vanilla; for non_saturating, cross-entropy with the label "real"."""
        if self.config.loss == "non_saturating":
            return F.binary_cross_entropy_with_logits(logits_fake, torch.ones_like(logits_fake))
        return -torch.mean(logits_fake)

    def training_step(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Updates both networks. Returns the values for the log, and the gradients of both."""
        inputs = batch.image
        elements = inputs[0].numel()

        # optimizer_idx == 0
        self.opt_ae.zero_grad()
        reconstructions, kl_loss = self.forward(batch, step)
        pixel = torch.abs(inputs - reconstructions)
        p_loss = self.lpips(reconstructions, inputs).view(-1, 1, 1, 1)
        nll_loss = torch.sum(pixel + 1.0 * p_loss) / inputs.shape[0]
        g_loss = self.generator_loss(self.discriminator(reconstructions))
        last_layer = self.model.decoder.conv_out.weight
        (nll_grads,) = torch.autograd.grad(nll_loss, last_layer, retain_graph=True)
        (g_grads,) = torch.autograd.grad(g_loss, last_layer, retain_graph=True)
        d_weight = torch.clamp(torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4), 0.0, 1e4).detach()
        d_weight = d_weight * self.config.weight
        loss = nll_loss + self.rate_weight * kl_loss + d_weight * g_loss
        loss.backward()
        gradients = {"model": gradients_of(self.model)}
        self.opt_ae.step()

        # optimizer_idx == 1
        self.opt_disc.zero_grad()
        if self.config.order == "compvis":
            reconstructions, _ = self.forward(batch, step)
        logits_real = self.discriminator(inputs.detach())
        logits_fake = self.discriminator(reconstructions.detach())
        d_loss = self.discriminator_loss(logits_real, logits_fake)
        d_loss.backward()
        gradients["discriminator"] = gradients_of(self.discriminator)
        self.opt_disc.step()

        values = {
            "pixel": pixel.mean(),
            "perceptual": p_loss.mean(),
            "rate": kl_loss,
            "generator": g_loss,
            "generator_weight": d_weight,
            "total": loss / elements,
            "discriminator": d_loss,
            "discriminator_accuracy": torch.cat([logits_real > 0, logits_fake < 0]).double().mean(),
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        return {name: value.detach() for name, value in values.items()}, gradients


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The tensors of a network agree, to a share of each one's largest value.

    Where that is a rounding of 0, such as the gradient of a bias of attention's keys, it is compared with the network.
    """
    assert ours.keys() == theirs.keys()
    largest = {name: value.abs().max().item() for name, value in theirs.items()}
    smallest = 1e-6 * max(largest.values())
    for name, value in theirs.items():
        difference = (ours[name] - value).abs().max().item()
        assert difference <= TOLERANCE * max(largest[name], smallest), name


def watched(
    apply: Callable[[Tensor, Tensor, int], None], gradients: dict[str, dict[str, Tensor]], name: str, module: nn.Module
) -> Callable[[Tensor, Tensor, int], None]:
    """An update that notes the gradients first."""

    def note_and_apply(norm: Tensor, finite: Tensor, step: int) -> None:
        gradients[name] = gradients_of(module)
        apply(norm, finite, step)

    return note_and_apply


@pytest.mark.parametrize(
    ("norm", "loss", "order"),
    list(itertools.product(("batch", "group", "none"), ("hinge", "vanilla", "non_saturating"), ("compvis", "shared"))),
)
def test_steps_equal_compvis(build: Build, monkeypatch: pytest.MonkeyPatch, norm: str, loss: str, order: str) -> None:
    chosen = (f"discriminator.norm={norm}", f"discriminator.loss={loss}", f"discriminator.order={order}")
    run, recipe = build(*SETTINGS, *chosen)
    discriminator = run.critics["discriminator"]
    with torch.no_grad():
        for weight in (value for value in discriminator.parameters() if value.dim() == 4):
            weight.mul_(8.0)  # so that some logits are beyond the hinge's margin
    theirs = CompVis(run, recipe)

    judged: list[Tensor] = []
    discriminator.register_forward_pre_hook(lambda _, inputs: judged.append(inputs[0].detach().clone()))
    gradients: dict[str, dict[str, Tensor]] = {}
    networks = {"model": run.autoencoder, "discriminator": discriminator}
    for name, update in run.updates.items():
        monkeypatch.setattr(update, "apply", watched(update.apply, gradients, name, networks[name]))

    for step, (batch,) in enumerate(batches_of(run, recipe, STEPS)):
        judged.clear()
        gradients.clear()
        expected, expected_gradients = theirs.training_step(batch, step)
        values = TRAIN_STEPS[order](run, [batch], step)

        images = len(batch.image)
        assert [len(seen) for seen in judged] == ([images] * 3 if norm == "batch" else [images, 2 * images])
        assert torch.equal(judged[1][:images], batch.image)  # images before reconstructions
        assert 0 < expected["generator_weight"] < 0.5 * 1e4  # the clamp does not decide
        for name, value in expected.items():
            torch.testing.assert_close(values[name], value, rtol=TOLERANCE, atol=0)
        for network, found in gradients.items():
            assert_close(found, expected_gradients[network])
        assert_close(run.autoencoder.state_dict(), theirs.model.state_dict())
        assert_close(discriminator.state_dict(), theirs.discriminator.state_dict())  # running statistics, too
    tracked = [value for name, value in discriminator.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(tracked) == (2 if norm == "batch" else 0)
    assert all(int(value) == 3 * STEPS for value in tracked)
