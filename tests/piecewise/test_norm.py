import pytest
import torch
from torch import nn

from ldm_vae.piecewise.norm import GatheredNorm
from ldm_vae.piecewise.strips import cuts

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("strips", [1, 3, 40])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_strips_are_those_of_the_picture(strips: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(1, 8, 40, 5) * torch.linspace(0.5, 2.0, 40)[:, None] + torch.linspace(-3.0, 3.0, 40)[:, None]
    x = x.contiguous(memory_format=memory_format)
    gathered = GatheredNorm(norm)
    for first, end in cuts(40, strips):
        gathered.gather(x[:, :, first:end])
    assert gathered.count == 2 * 40 * 5
    torch.testing.assert_close(gathered.apply(x), norm(x))  # float32 statistics per strip, merged in float64
    torch.testing.assert_close(gathered.apply(x[:, :, 7:9]), norm(x)[:, :, 7:9])


def test_large_mean_does_not_swallow_a_small_deviation() -> None:
    x = 1000.0 + torch.randn(1, 4, 64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = nn.GroupNorm(2, 4, eps=1e-6).double()
    gathered = GatheredNorm(norm)
    for strip in x.split(4, dim=2):
        gathered.gather(strip)
    torch.testing.assert_close(gathered.apply(x), norm(x), rtol=0, atol=1e-9)  # 1000^2 / 1 of float64's 1e-16


def test_constant_picture_is_normalised_to_the_bias() -> None:
    norm = nn.GroupNorm(2, 4, eps=1e-6)
    gathered = GatheredNorm(norm)
    for _ in range(3):
        gathered.gather(torch.full((1, 4, 2, 2), 0.5))
    assert torch.equal(gathered.apply(torch.full((1, 4, 2, 2), 0.5)), torch.zeros(1, 4, 2, 2))


def test_bfloat16_has_statistics_in_float32() -> None:
    x = (3.0 + torch.randn(1, 4, 32, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    norm = nn.GroupNorm(2, 4, eps=1e-6)
    gathered = GatheredNorm(nn.GroupNorm(2, 4, eps=1e-6).bfloat16())
    for strip in x.split(5, dim=2):
        gathered.gather(strip)
    result = gathered.apply(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), norm(x.float()), rtol=2**-8, atol=2**-8)  # rounded once, at the end
