from collections.abc import Callable

import pytest
import torch

from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.piecewise.chains.kl import decoder_steps, encoder_steps
from ldm_vae.piecewise.plan import Plan, make_plan, plan_decode, plan_encode
from ldm_vae.piecewise.steps import AttentionStep


@pytest.fixture(scope="module")
def full_size() -> Autoencoder:
    """The architecture of Stable Diffusion, without memory for its weights."""
    with torch.device("meta"):
        return Autoencoder(AutoencoderConfig())


def plans(model: Autoencoder, decode: bool, max_memory: int | None) -> Plan:
    """For 2048 x 2048 pixels, computed on a CPU."""
    steps = decoder_steps(model, 256, 256) if decode else encoder_steps(model, 2048, 2048)
    return make_plan(steps, torch.empty(1), "this", max_memory)


@pytest.mark.parametrize("decode", [True, False])
def test_segments_join_up_and_attention_is_never_computed_twice(full_size: Autoencoder, decode: bool) -> None:
    steps = decoder_steps(full_size, 256, 256) if decode else encoder_steps(full_size, 2048, 2048)
    default = plans(full_size, decode, None)
    for plan in (default, plans(full_size, decode, default.working_bytes // 4)):
        assert [segment.first for segment in plan.segments] == [0, *(segment.end for segment in plan.segments[:-1])]
        assert plan.segments[-1].end == len(steps)
        for segment in plan.segments:
            assert not any(isinstance(step, AttentionStep) for step in steps[segment.first : segment.end - 1])
        assert plan.working_bytes > 2 * 4 * 512 * 256 * 256  # keys and values are there all at once


@pytest.mark.parametrize("decode", [True, False])
def test_less_memory_is_more_work_and_a_plan_keeps_its_bound(full_size: Autoencoder, decode: bool) -> None:
    default = plans(full_size, decode, None)
    assert default.work == 1.0 and default.strips > 1
    work = 1.0
    for part in (1.0, 0.7, 0.5, 0.3, 0.2):
        bound = int(part * default.working_bytes)
        plan = plans(full_size, decode, bound)
        assert plan.working_bytes <= bound
        assert plan.work >= work
        work = plan.work
    assert work > 1.0


@pytest.mark.parametrize("decode", [True, False])
def test_bound_below_the_least_is_refused_and_the_least_works(full_size: Autoencoder, decode: bool) -> None:
    with pytest.raises(UserError, match="takes at least") as caught:
        plans(full_size, decode, 10**6)
    least = int(caught.value.remedy.split()[-1].replace(",", ""))
    assert plans(full_size, decode, least).working_bytes == least
    with pytest.raises(UserError, match=f"{least:,}"):
        plans(full_size, decode, least - 1)


@pytest.mark.parametrize("plan", [plan_decode, plan_encode])
def test_what_is_taken_beside_the_plan_counts(network: Callable[..., Autoencoder], plan: Callable[..., Plan]) -> None:
    model, beside = network(), 10**6
    with pytest.raises(UserError) as alone:
        plan(model, 64, 32, max_memory=1000)
    with pytest.raises(UserError) as both:
        plan(model, 64, 32, max_memory=beside + 1000, beside=beside)
    least, more = (int(caught.value.remedy.split()[-1].replace(",", "")) for caught in (alone, both))
    assert more == least + beside
    assert plan(model, 64, 32, max_memory=more, beside=beside).working_bytes == least


def test_error_names_bound_and_size(network: Callable[..., Autoencoder]) -> None:
    with pytest.raises(UserError, match=r"max_memory of 1,000 bytes: decoding 64 x 32 latents takes at least [\d,]+$"):
        plan_decode(network(), 64, 32, max_memory=1000)
    with pytest.raises(UserError, match=r"encoding 64 x 32 pixels"):
        plan_encode(network(), 64, 32, max_memory=1000)


def test_longer_side_is_cut(network: Callable[..., Autoencoder]) -> None:
    assert plan_decode(network(), 64, 8).axis == 2
    assert plan_decode(network(), 8, 64).axis == 3


def test_accelerators_compute_again_before_they_spill(full_size: Autoencoder) -> None:
    # The weights of `full_size` are on the meta device, which like a GPU is not the one that keeps what is spilled.
    default = plan_decode(full_size, 256, 256)
    assert not default.spill
    again = plan_decode(full_size, 256, 256, max_memory=default.working_bytes // 4)
    assert not again.spill and again.work > 1.01
    spilled = plan_decode(full_size, 256, 256, max_memory=default.working_bytes // 20)
    assert spilled.spill and spilled.work < again.work and spilled.working_bytes <= default.working_bytes // 20


def test_strips_are_larger_where_the_host_starts_each_operation(full_size: Autoencoder) -> None:
    strips = [make_plan(decoder_steps(full_size, 128, 128), torch.empty(1, device=device), "this", None).strips
              for device in ("meta", "cpu")]  # fmt: skip
    assert strips == [4, 64]  # of 256 MiB and of 16 MiB: the largest boundary has 256 channels, 1 GiB
