import copy
import os
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.losses.perceptual import (
    BACKBONE,
    LPIPS,
    SMALLEST_IMAGE,
    LPIPSNetwork,
    PerceptualConfig,
    _unit_length,
    perceptual_channels,
)
from ldm_vae.pretrained.backbones import backbone_weights
from ldm_vae.recipe import validate

pytestmark = pytest.mark.numerical

Pair = tuple[LPIPS, lpips.LPIPS]


@pytest.fixture
def images(photographs: Tensor) -> Tensor:
    """(8, 3, 64, 64): photographs, a noisy one, a flat one, black, white."""
    torch.manual_seed(0)
    noisy = photographs[:1] + 0.2 * torch.randn_like(photographs[:1])
    flat = [torch.full_like(noisy, value) for value in (0.3, -1.0, 1.0)]
    return torch.cat([photographs, noisy, *flat])


def test_values_equal_lpips(pair: Pair, images: Tensor) -> None:
    """Every image against every other. 1e-5 is what the project promises; about 1e-7 is found."""
    ours, theirs = pair
    for shift in range(1, len(images) // 2 + 1):  # beyond come the same pairs, the other way round
        other = images.roll(shift, dims=0)
        torch.testing.assert_close(ours(images, other), theirs(images, other).flatten(), rtol=0, atol=1e-5)
    assert (ours(images, images) == 0).all()


def test_gradients_equal_lpips(pair: Pair, photographs: Tensor) -> None:
    """In float64, where only epsilon differs: 1e-4 beside vectors of length 0.8 or more, so 1e-8 of the value."""
    ours, theirs = (copy.deepcopy(module).double() for module in pair)
    image = photographs[:2].double().requires_grad_()
    target = photographs[2:].double()
    (found,) = torch.autograd.grad(ours(image, target).sum(), image)
    (expected,) = torch.autograd.grad(theirs(image, target).sum(), image)
    assert found.dtype == torch.float64 and expected.norm() > 0
    assert (found - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize(("network", "expected"), [("alex", (0.722, 0.138)), ("vgg", (0.569, 0.422))])
def test_published_answers(network: LPIPSNetwork, expected: tuple[float, float]) -> None:
    """AlexNet's are those that the LPIPS project prints, to three digits; VGG's were measured with these weights."""
    folder = Path(os.environ.get("LDM_VAE_TEST_DATA", "")) / "reference" / "lpips"
    if "LDM_VAE_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("the example images of the LPIPS project are not here: LDM_VAE_TEST_DATA")
    pixels = [np.array(Image.open(folder / f"{name}.png").convert("RGB")) for name in ("ex_ref", "ex_p0", "ex_p1")]
    reference, *others = (torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1.0 for image in pixels)
    distance = LPIPS(network)(torch.cat(others), reference.expand(2, -1, -1, -1))
    torch.testing.assert_close(distance, torch.tensor(expected), rtol=0, atol=5e-4)


def test_features_are_torchvisions(pair: Pair, photographs: Tensor) -> None:
    ours, _ = pair
    name = BACKBONE[ours.network]
    with torch.device("meta"):
        features = getattr(torchvision.models, name)(weights=None).features
    state = {key.removeprefix("features."): value for key, value in backbone_weights(name).items()}
    features.load_state_dict(state, assign=True)
    last = ours.taps[-1]
    assert [type(layer) for layer in features[:last]] == [type(layer) for layer in ours.features]
    torch.testing.assert_close(features[:last](photographs), ours.features(photographs.clone()), rtol=0, atol=0)


def test_heads_are_the_packages(pair: Pair) -> None:
    ours, theirs = pair
    for i, layer in enumerate(theirs.lins):
        assert torch.equal(ours.get_buffer(f"head_{i}"), layer.model[-1].weight)


def test_vectors_of_zeros_have_a_gradient() -> None:
    zeros = torch.zeros(1, 8, 2, 2, requires_grad=True)
    target = torch.ones(1, 8, 2, 2)
    (expected,) = torch.autograd.grad((lpips.normalize_tensor(zeros) - target).square().sum(), zeros)
    (found,) = torch.autograd.grad((_unit_length(zeros) - target).square().sum(), zeros)
    assert expected.isnan().all()  # the reason for our own module
    assert found.isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1e-25])
def test_vanishing_features_have_a_gradient(pair: Pair, photographs: Tensor, scale: float) -> None:
    """A dead last layer, and one whose squares underflow: then lpips' NaN is not stopped by the ReLU before it."""
    ours, theirs = copy.deepcopy(pair)
    last = max(int(name) for name, layer in ours.features.named_children() if isinstance(layer, nn.Conv2d))
    for layer in (ours.features[last], dict(theirs.net.slice5.named_children())[str(last)]):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(scale)
    image = photographs[:2].clone().requires_grad_()
    target = photographs[2:]
    (found,) = torch.autograd.grad(ours(image, target).sum(), image)
    (expected,) = torch.autograd.grad(theirs(image, target).sum(), image)
    assert expected.isnan().any() == (scale > 0)
    assert found.isfinite().all() and found.norm() > 0
    torch.testing.assert_close(ours(image, target), theirs(image, target).flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_are_finite_on_degenerate_images(pair: Pair, images: Tensor, precision: str) -> None:
    ours, _ = pair
    size = SMALLEST_IMAGE[ours.network]  # bfloat16 is a hundred times slower on some processors
    photograph, flat, black = (images[i : i + 1, :, :size, :size] for i in (0, 5, 6))
    pairs = [(black, black), (flat, flat), (photograph, photograph), (black, photograph), (photograph, flat)]
    for left, right in pairs:
        reconstruction = left.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            distance = ours(reconstruction, right)
        (gradient,) = torch.autograd.grad(distance.sum(), reconstruction)
        assert gradient.isfinite().all()
        assert (gradient.norm() > 0) == (left is not right)


def test_convolutions_in_bfloat16_distances_in_float32(pair: Pair, images: Tensor) -> None:
    ours = copy.deepcopy(pair[0])
    types = set()
    for layer in ours.features:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
    size = SMALLEST_IMAGE[ours.network]  # bfloat16 is a hundred times slower on some processors
    images = images[:3, :, :size, :size]
    other = images.roll(1, dims=0)
    exact = ours(images, other)
    assert types == {torch.float32}
    types.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = ours(images.bfloat16(), other)  # as a decoder under autocast returns them
    assert types == {torch.bfloat16}
    assert rough.dtype == torch.float32
    # bfloat16 rounds to 2^-9 = 0.2%; over a dozen layers that leaves a few percent at most.
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=1e-3)


def test_gradient_reaches_the_reconstruction_alone(pair: Pair, photographs: Tensor) -> None:
    ours, _ = pair
    reconstruction = (photographs + 0.1).requires_grad_()
    target = photographs.clone().requires_grad_()
    ours(reconstruction, target).sum().backward()
    assert reconstruction.grad is not None and reconstruction.grad.norm() > 0
    assert target.grad is None
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in ours.parameters())


def test_slope_in_float64(photographs: Tensor) -> None:
    """Analytic gradient against a central difference along a random direction."""
    ours = LPIPS("vgg").double()
    image, target = photographs[:1, :, :32, :32].double(), photographs[1:2, :, :32, :32].double()
    torch.manual_seed(0)
    image = (image + 0.01 * torch.randn_like(image)).requires_grad_()  # equal pixels are ties for the pooling
    direction = torch.randn_like(image)
    (gradient,) = torch.autograd.grad(ours(image, target).sum(), image)
    with torch.no_grad():
        step = 1e-7 * direction
        slope = (ours(image + step, target) - ours(image - step, target)) / 2e-7
    torch.testing.assert_close(slope.sum(), (gradient * direction).sum(), rtol=1e-5, atol=0)  # rounding: 1e-16 / 1e-7


def test_stays_in_evaluation() -> None:
    parent = nn.ModuleDict({"lpips": LPIPS("alex")}).train()
    assert not any(module.training for module in parent["lpips"].modules())


def test_worse_pictures_are_further(pair: Pair, photographs: Tensor) -> None:
    ours, _ = pair
    torch.manual_seed(0)
    noise = torch.randn_like(photographs)
    distances = torch.stack([ours(photographs + strength * noise, photographs) for strength in (0.0, 0.02, 0.1, 0.3)])
    assert (distances.diff(dim=0) > 0).all()


def test_smallest_image(pair: Pair, photographs: Tensor) -> None:
    ours, theirs = pair
    smallest = SMALLEST_IMAGE[ours.network]
    left, right = photographs[:2, :, :smallest, :smallest], photographs[2:, :, :smallest, :smallest]
    torch.testing.assert_close(ours(left, right), theirs(left, right).flatten(), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=f"use at least {smallest}x{smallest}"):
        ours(left[:, :, 1:], right[:, :, 1:])


def test_channel_policies(photographs: Tensor) -> None:
    plain = LPIPS("alex")
    left, right = photographs[:2], photographs[2:]
    cases = [
        (PerceptualConfig(), left, right, left, right),
        (
            PerceptualConfig(channels="repeat"),
            left[:, :1],
            right[:, :1],
            left[:, :1].repeat(1, 3, 1, 1),
            right[:, :1].repeat(1, 3, 1, 1),
        ),
        (
            PerceptualConfig(channels="select", select=(4, 2, 0)),
            torch.cat([left, left], dim=1),
            torch.cat([right, right], dim=1),
            left[:, [1, 2, 0]],
            right[:, [1, 2, 0]],
        ),
    ]
    for config, reconstruction, target, shown_reconstruction, shown_target in cases:
        lpips_of_policy = LPIPS("alex", channels=perceptual_channels(config, target.shape[1]))
        expected = plain(shown_reconstruction, shown_target)
        torch.testing.assert_close(lpips_of_policy(reconstruction, target), expected, rtol=0, atol=0)
    assert perceptual_channels(PerceptualConfig(channels="off"), 12) is None


@pytest.mark.parametrize(
    ("config", "image_channels", "remedy"),
    [
        (PerceptualConfig(), 1, "repeat"),
        (PerceptualConfig(), 4, "select"),
        (PerceptualConfig(channels="repeat"), 5, "select"),
        (PerceptualConfig(channels="select", select=(0, 1, 4)), 4, "from 0 to 3"),
    ],
)
def test_channels_that_do_not_fit(config: PerceptualConfig, image_channels: int, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy) as caught:
        perceptual_channels(config, image_channels)
    assert f"{image_channels} channel" in str(caught.value)


def test_images_of_other_channels_are_refused_without_a_policy(photographs: Tensor) -> None:
    four = torch.cat([photographs, photographs[:, :1]], dim=1)
    with pytest.raises(UserError, match="4 channels"):
        LPIPS("alex")(four, four)


@pytest.mark.parametrize(
    "values", [{"network": "squeeze"}, {"channels": "gray"}, {"select": [0, 1]}, {"select": [0, 1, -1]}, {"weight": -1}]
)
def test_impossible_configurations(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        validate(PerceptualConfig, values, "test")
