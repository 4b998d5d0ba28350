from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ldm_vae.losses.adaptive import adaptive_weight
from ldm_vae.losses.adversarial import generator_loss
from ldm_vae.losses.anchor import weight_gradients
from ldm_vae.losses.perceptual import LPIPS
from ldm_vae.losses.pixel import pixel_distance
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.nn.discriminators.patch import NormKind, PatchDiscriminator

pytestmark = pytest.mark.numerical

CONFIG = AutoencoderConfig(block_out_channels=(16, 32), layers_per_block=1, norm_groups=8, mid_attention=False)


def calculate_adaptive_weight(nll_loss: Tensor, g_loss: Tensor, last_layer: Tensor) -> Tensor:
    """ldm/modules/losses/contperceptual.py of CompVis/latent-diffusion, but for the factor discriminator_weight."""
    nll_grads = torch.autograd.grad(nll_loss, last_layer, retain_graph=True)[0]
    g_grads = torch.autograd.grad(g_loss, last_layer, retain_graph=True)[0]

    d_weight = torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4)
    return torch.clamp(d_weight, 0.0, 1e4).detach()


@dataclass
class Parts:
    model: Autoencoder
    lpips: LPIPS
    discriminator: PatchDiscriminator
    images: Tensor

    def to(self, dtype: torch.dtype) -> "Parts":
        model, lpips = self.model.to(dtype), self.lpips.to(dtype)
        return Parts(model, lpips, self.discriminator.to(dtype), self.images.to(dtype))

    def losses(self, reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Ours: reconstruction and generator loss, summed over an image and averaged over images."""
        pixel = pixel_distance(reconstruction, target, "l1").sum(dim=(1, 2, 3))
        perceptual = self.lpips(reconstruction, target) * target[0].numel()
        return (pixel + perceptual).mean(), generator_loss(self.discriminator(reconstruction), "hinge").mean()

    def weight(self, images: Tensor, reduce: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Ours: the adaptive weight, and the two gradients it came from (2, C, channels, 3, 3)."""
        output = self.model(images)
        leaf = output.reconstruction.detach().requires_grad_()
        reached = [torch.autograd.grad(loss, leaf)[0] for loss in self.losses(leaf, output.target)]
        gradients = weight_gradients(self.model.anchors["decoder"], output.below["decoder"], reached)
        return adaptive_weight(*gradients, reduce=reduce), torch.stack(gradients)


def confident_discriminator(norm: NormKind) -> PatchDiscriminator:
    """Large logits, as after training: the gradient of a new one is so short that the maximum would decide."""
    discriminator = PatchDiscriminator(3, channels=16, norm=norm)
    last = discriminator.main[-1]
    assert isinstance(last, nn.Conv2d)
    with torch.no_grad():
        last.weight.mul_(100.0)
    return discriminator


@pytest.fixture
def parts(photographs: Tensor) -> Parts:
    torch.manual_seed(0)
    return Parts(Autoencoder(CONFIG), LPIPS("vgg"), confident_discriminator("batch"), photographs[:, :, :32, :32])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_compvis(parts: Parts, dtype: torch.dtype, tolerance: float) -> None:
    """The same networks: autoencoder, LPIPS, BatchNorm discriminator called on the reconstructions alone.

    1e-5 is what the project promises; in float64 the order of summation is all that is left.
    """
    parts = parts.to(dtype)
    inputs, reconstructions = parts.images, parts.model(parts.images).reconstruction
    rec_loss = torch.abs(inputs.contiguous() - reconstructions.contiguous())
    p_loss = parts.lpips(reconstructions, inputs).view(-1, 1, 1, 1)
    rec_loss = rec_loss + 1.0 * p_loss
    logvar = torch.zeros(())
    nll_loss = rec_loss / torch.exp(logvar) + logvar
    nll_loss = torch.sum(nll_loss) / nll_loss.shape[0]
    g_loss = -torch.mean(parts.discriminator(reconstructions.contiguous()))
    expected = calculate_adaptive_weight(nll_loss, g_loss, parts.model.decoder.conv_out.weight)

    weight, _ = parts.weight(inputs)
    assert 0 < expected < 1e4  # neither clamp nor epsilon decides
    assert weight.dtype == dtype and weight.shape == () and not weight.requires_grad
    torch.testing.assert_close(weight, expected, rtol=tolerance, atol=0)


def test_processes_average_gradients_before_norms(parts: Parts) -> None:
    """Two halves of a batch, as two processes have them, agree on the weight of the whole batch."""
    parts.discriminator = confident_discriminator("group")  # batch statistics would differ between the halves
    parts = parts.to(torch.float64)
    whole, _ = parts.weight(parts.images)
    halves = [parts.weight(images) for images in parts.images.chunk(2)]
    mean = (halves[0][1] + halves[1][1]) / 2
    calls = []

    def reduce(gradients: Tensor) -> Tensor:
        calls.append(gradients)
        return mean

    for images, (alone, gradients) in zip(parts.images.chunk(2), halves, strict=True):
        weight, _ = parts.weight(images, reduce=reduce)
        torch.testing.assert_close(calls[-1], gradients)  # what this process contributes
        torch.testing.assert_close(weight, whole, rtol=1e-12, atol=0)
        assert abs(alone / whole - 1) > 1e-3  # without it they disagree
    averaged = (halves[0][0] + halves[1][0]) / 2
    assert abs(averaged / whole - 1) > 1e-3  # and the mean of weights is another number


def test_gradients_that_are_zero() -> None:
    zero, one = torch.zeros(3, 16, 3, 3), torch.ones(3, 16, 3, 3)
    assert adaptive_weight(zero, zero) == 0
    assert adaptive_weight(zero, one) == 0
    assert adaptive_weight(one, zero) == 1e4
    tiny = torch.full_like(one, 1e-6)
    torch.testing.assert_close(adaptive_weight(tiny, zero), tiny.norm() / 1e-4)
    assert adaptive_weight(one.fill_(float("nan")), zero).isnan()  # a broken step stays visible


def test_other_units() -> None:
    """Losses divided by s train alike with the limits that the docstring says."""
    torch.manual_seed(0)
    scale = 3 * 64 * 64
    for strength in (1e-9, 1e-4, 1.0):  # epsilon and maximum bind for the first
        reconstruction, generator = torch.randn(3, 16, 3, 3).double(), strength * torch.randn(3, 16, 3, 3).double()
        weight = adaptive_weight(reconstruction, generator)
        assert (weight == 1e4) == (strength < 1e-4)
        mean = adaptive_weight(reconstruction / scale, generator, maximum=1e4 / scale)
        torch.testing.assert_close(mean * scale, weight)
        torch.testing.assert_close(adaptive_weight(reconstruction / scale, generator / scale, eps=1e-4 / scale), weight)
