import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.losses.pixel import PixelConfig, PixelKind, pixel_distance
from ldm_vae.recipe import validate

pytestmark = pytest.mark.numerical

SHAPE = (2, 3, 5, 7)


def test_equals_torch() -> None:
    reconstruction, target = torch.randn(SHAPE), torch.randn(SHAPE)
    epsilon = 0.3
    expected: dict[PixelKind, Tensor] = {
        "l1": F.l1_loss(reconstruction, target, reduction="none"),
        "l2": F.mse_loss(reconstruction, target, reduction="none"),
        "charbonnier": torch.hypot(reconstruction - target, torch.tensor(epsilon)),
    }
    for kind, value in expected.items():
        torch.testing.assert_close(pixel_distance(reconstruction, target, kind, epsilon), value)


def test_charbonnier_lies_between_l1_and_l2() -> None:
    reconstruction, target = torch.randn(SHAPE), torch.zeros(SHAPE)
    near_l1 = pixel_distance(1e3 * reconstruction, target, "charbonnier", 1e-3)
    torch.testing.assert_close(near_l1, pixel_distance(1e3 * reconstruction, target, "l1"))
    small = 1e-3 * reconstruction.double()  # sqrt(d^2 + e^2) = e + d^2 / 2e + O(d^4 / e^3)
    near_l2 = 2 * (pixel_distance(small, target, "charbonnier", 1.0) - 1.0)
    torch.testing.assert_close(near_l2, pixel_distance(small, target, "l2"), rtol=1e-4, atol=1e-13)


@pytest.mark.parametrize("kind", ["l1", "l2", "charbonnier"])
def test_gradient_is_finite_for_equal_images(kind: PixelKind) -> None:
    image = torch.randn(SHAPE, requires_grad=True)
    pixel_distance(image, image.detach(), kind).sum().backward()
    assert image.grad is not None
    assert (image.grad == 0).all()


def test_half_types_are_upcast_and_float64_stays() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        image = torch.randn(SHAPE).to(dtype)
        assert pixel_distance(image, image, "l2").dtype == expected
    # 1 and 1 + 2^-9 differ in float32 alone: the target must not be rounded to the reconstruction's type.
    assert pixel_distance(torch.ones(SHAPE, dtype=torch.bfloat16), torch.full(SHAPE, 1 + 2**-9), "l1").min() == 2**-9


@pytest.mark.parametrize("values", [{"kind": "huber"}, {"weight": -1.0}, {"epsilon": 0.0}, {"weigth": 1.0}])
def test_impossible_configurations(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        validate(PixelConfig, values, "test")
