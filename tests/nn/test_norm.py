"""Norms and doublings that keep the type of what they read: their values, and what autocast would keep instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.nn.blocks import Upsample
from ldm_vae.nn.discriminators.patch import PatchDiscriminator
from ldm_vae.nn.norm import GroupNorm, TypeKeeper, keep_types

pytestmark = pytest.mark.numerical
BFLOAT16 = 2.0**-8  # distance of two neighbours, relative to their size


def norm(*, keeps: bool) -> GroupNorm:
    torch.manual_seed(0)
    module = GroupNorm(4, 16, eps=1e-6)
    nn.init.normal_(module.weight, 1.0, 0.2)
    nn.init.normal_(module.bias)
    if keeps:
        keep_types(module)
    return module


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets autocast on the CPU choose float32 for group norms and doublings, as CUDA's lists do."""

    def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, *rest: object, **options: object) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                x = x.float()
            return function(x, *rest, **options)

        return run

    for name in ("group_norm", "interpolate"):
        monkeypatch.setattr(F, name, in_float32(getattr(F, name)))


def saved_by(network: nn.Module, x: Tensor) -> dict[torch.dtype, int]:
    """Bytes that a forward pass under autocast keeps for the backward pass, by type, without the parameters."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def note(value: Tensor) -> Tensor:
        if value.untyped_storage()._cdata not in weights:
            kept[value.untyped_storage()._cdata] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value), torch.autocast("cpu", torch.bfloat16):
        network(x)
    sizes: dict[torch.dtype, int] = {}
    for value in kept.values():
        sizes[value.dtype] = sizes.get(value.dtype, 0) + value.nbytes
    return sizes


def test_what_is_computed_is_the_float32_result_rounded() -> None:
    x = (3 * torch.randn(2, 16, 8, 8) + 5).bfloat16()
    plain, keeping = norm(keeps=False), norm(keeps=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = keeping(x)
    expected = plain(x.float())
    assert result.dtype == torch.bfloat16
    # Half a distance for the result, and one for each of weight, bias and their product. Statistics in bfloat16 would
    # be off by 5 * 2^-8 / 3 standard deviations, which is more for small results.
    torch.testing.assert_close(result.float(), expected, rtol=2 * BFLOAT16, atol=2 * BFLOAT16)


def test_statistics_are_in_float32() -> None:
    """A mean of 100 and a deviation of 1: bfloat16 has steps of 0.5 there, so only exact sums give unit variance."""
    x = (100 + torch.randn(1, 16, 64, 64)).bfloat16()
    module = GroupNorm(4, 16)
    keep_types(module)
    result = module(x).float()
    of_groups = result.reshape(4, -1)
    assert of_groups.mean(dim=1).abs().max() < 1e-3  # the roundings of 16,384 values average out
    assert (of_groups.std(dim=1) - 1).abs().max() < 2e-3


def test_without_half_types_nothing_changes() -> None:
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(norm(keeps=True)(x), norm(keeps=False)(x))
    assert torch.equal(norm(keeps=False)(x), F.group_norm(x, 4, norm(keeps=False).weight, norm(keeps=False).bias, 1e-6))


def test_doubling_copies(as_on_cuda: None) -> None:
    torch.manual_seed(0)
    plain, keeping = Upsample(4), Upsample(4)
    keeping.load_state_dict(plain.state_dict())
    keep_types(keeping)
    x = torch.randn(1, 4, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(keeping(x), plain(x))


@pytest.mark.parametrize("build", [lambda: PatchDiscriminator(3, 8, 2), lambda: network().encoder])
def test_no_activation_is_kept_in_float32(as_on_cuda: None, build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = build(), torch.randn(2, 3, 32, 32)
    before = saved_by(module, x)
    keep_types(module)
    after = saved_by(module, x)
    assert sum(after.values()) < 0.7 * sum(before.values())
    # What is left are the statistics of the groups.
    assert after.get(torch.float32, 0) < 0.02 * before[torch.float32]


def test_all_norms_are_found() -> None:
    for module in (network(), PatchDiscriminator(3, 8, 2)):
        keep_types(module)
        norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm | Upsample)]
        assert norms and all(isinstance(part, TypeKeeper) and part.keeps_type for part in norms)


def network() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4))
