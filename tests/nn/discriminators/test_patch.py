import functools
import math

import pytest
import torch
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.nn.discriminators.patch import NormKind, PatchDiscriminator

pytestmark = pytest.mark.numerical


class NLayerDiscriminator(nn.Module):
    """taming/modules/discriminator/model.py of CompVis/taming-transformers, without ActNorm."""

    def __init__(self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        norm_layer = nn.BatchNorm2d
        use_bias = False
        kw = 4
        padw = 1
        sequence = [nn.Conv2d(input_nc, ndf, kernel_size=kw, stride=2, padding=padw), nn.LeakyReLU(0.2, True)]
        nf_mult = 1
        nf_mult_prev = 1
        for n in range(1, n_layers):
            nf_mult_prev = nf_mult
            nf_mult = min(2**n, 8)
            sequence += [
                nn.Conv2d(ndf * nf_mult_prev, ndf * nf_mult, kernel_size=kw, stride=2, padding=padw, bias=use_bias),
                norm_layer(ndf * nf_mult),
                nn.LeakyReLU(0.2, True),
            ]
        nf_mult_prev = nf_mult
        nf_mult = min(2**n_layers, 8)
        sequence += [
            nn.Conv2d(ndf * nf_mult_prev, ndf * nf_mult, kernel_size=kw, stride=1, padding=padw, bias=use_bias),
            norm_layer(ndf * nf_mult),
            nn.LeakyReLU(0.2, True),
        ]
        sequence += [nn.Conv2d(ndf * nf_mult, 1, kernel_size=kw, stride=1, padding=padw)]
        self.main = nn.Sequential(*sequence)

    def forward(self, input: Tensor) -> Tensor:
        return self.main(input)


@pytest.mark.parametrize(("in_channels", "channels", "layers"), [(3, 64, 3), (1, 8, 1), (4, 8, 2), (3, 4, 5)])
def test_batch_norm_equals_compvis(in_channels: int, channels: int, layers: int) -> None:
    ours, theirs = (
        PatchDiscriminator(in_channels, channels, layers, "batch"),
        NLayerDiscriminator(in_channels, channels, layers),
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    size = 3 * 2**layers + 5
    image = torch.randn(2, in_channels, size, size + 9)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)  # the same operations in the same order
    torch.testing.assert_close(
        ours.eval()(image), theirs.eval()(image), rtol=0, atol=0
    )  # running statistics moved alike
    assert ours(image).shape == (2, 1, size // 2**layers - 2, (size + 9) // 2**layers - 2)


def test_initialised_as_compvis() -> None:
    torch.manual_seed(0)
    for name, value in PatchDiscriminator(3, norm="batch").named_parameters():
        if name.endswith("weight"):
            mean = 1.0 if value.dim() == 1 else 0.0
            # Standard errors of mean and deviation of n normal draws: s / sqrt(n), s / sqrt(2 n); five of each.
            bound = 5 * 0.02 / math.sqrt(value.numel())
            assert abs(value.mean().item() - mean) < bound, name
            assert abs(value.std().item() - 0.02) < bound, name


def test_group_norm_judges_each_image_alone() -> None:
    discriminator = PatchDiscriminator(3, channels=16).double()
    assert not list(discriminator.buffers())
    images = torch.randn(4, 3, 40, 40).double()
    together = discriminator(images)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(together, alone)  # float64, to 1e-7; kernels may sum in another order
    batch = PatchDiscriminator(3, channels=16, norm="batch").double()
    assert (batch(images) - torch.cat([batch(image[None]) for image in images])).abs().max() > 1e-3


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8, 24, 48, 64])
def test_groups_fit_any_width(channels: int) -> None:
    norms = [module for module in PatchDiscriminator(3, channels).modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 3
    for norm in norms:
        # A group of one channel at one position would be normalised to 0, whatever the image.
        assert norm.num_channels // norm.num_groups >= min(4, norm.num_channels)
    if channels == 64:
        assert [norm.num_groups for norm in norms] == [32, 32, 32]


def test_a_logit_sees_seventy_pixels() -> None:
    """The patch of three layers (pix2pix); without norms, which spread over the image."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1, channels=4, norm="none").double()
    image = torch.randn(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    logits = discriminator(image)
    (gradient,) = torch.autograd.grad(logits[0, 0, 7, 7], image)
    seen = gradient[0, 0].nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["group", "none"])
def test_smallest_image(layers: int, norm: NormKind) -> None:
    discriminator = PatchDiscriminator(3, channels=8, layers=layers, norm=norm)
    smallest = discriminator.smallest
    torch.manual_seed(0)
    logits = discriminator(torch.randn(2, 3, smallest, smallest))
    assert logits.shape == (2, 1, 1, 1)
    assert logits[0] != logits[1]  # it still tells them apart
    with pytest.raises(UserError, match=f"use at least {smallest}x{smallest}"):
        discriminator(torch.randn(2, 3, smallest, smallest - 1))


def test_learns_to_tell_two_kinds_of_image_apart() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, channels=8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    noise = functools.partial(torch.randn, 4, 3, 32, 32)
    for _ in range(30):
        real, fake = discriminator(torch.cat([noise(), nn.functional.avg_pool2d(noise(), 3, 1, 1)])).chunk(2)
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert real.min() > fake.max()
