"""How a drop-in is called: types, modes, transformations, copies and sizes, each as in diffusers' AutoencoderKL."""

from __future__ import annotations

import copy
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldm_vae import LatentCodec, UserError
from tests.interop.passes import IMAGES, LATENTS, count_passes, results
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical


def pair(vae: AutoencoderKL) -> tuple[Any, Any]:
    """The drop-in, and an AutoencoderKL of the same weights."""
    return LatentCodec.load(copy.deepcopy(vae)).as_diffusers(), copy.deepcopy(vae)


def assert_plain(ours: Any, theirs: Any, run: Callable[[Any], Tensor], calls: dict[str, int]) -> None:
    """Both give the same numbers, and the codec was not asked."""
    before = dict(calls)
    found, expected = run(ours), run(theirs)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert dict(calls) == before


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_gradients_checkpointing_and_training_are_those_of_the_autoencoder(
    vae: AutoencoderKL, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_passes(monkeypatch)
    ours, theirs = pair(vae)

    def gradients(model: Any) -> Tensor:
        model.train().requires_grad_(True)
        model.zero_grad()
        results(model)[part].square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert_plain(ours, theirs, gradients, calls)
    for model in (ours, theirs):
        model.enable_gradient_checkpointing()
    assert_plain(ours, theirs, gradients, calls)

    def step(model: Any) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gradients(model)
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert_plain(ours, theirs, step, calls)
    with torch.no_grad():  # and what was trained is what then encodes and decodes
        found, expected = results(ours)[part], results(theirs)[part]
        exact = results(double(theirs), IMAGES.double(), LATENTS.double())[part]
    assert_as_exact(found, expected, exact)
    assert calls[part] == 1


def test_inference_mode_runs_the_codec(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_passes(monkeypatch)
    ours, theirs = pair(vae.requires_grad_(True))
    exact = double(theirs)
    with torch.inference_mode():
        found, expected = results(ours), results(theirs)
        for part, value in results(exact, IMAGES.double(), LATENTS.double()).items():
            assert_as_exact(found[part], expected[part], value)
    assert calls == {"encode": 1, "decode": 1}


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_autocast_to_another_type_is_diffusers_own(
    vae: AutoencoderKL, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = count_passes(monkeypatch)
    ours, theirs = pair(vae)
    with torch.autocast("cpu", torch.bfloat16):
        assert_plain(ours, theirs, lambda model: results(model)[part], calls)
    assert "autocast asks for torch.bfloat16" in caplog.text
    ours.bfloat16()  # nothing left to cast: the codec runs, which is never more than bfloat16's rounding off
    with torch.autocast("cpu", torch.bfloat16):
        found = results(ours, IMAGES.bfloat16(), LATENTS.bfloat16())[part]
    expected = results(vae)[part]
    assert found.dtype == torch.bfloat16 and calls[part] == 1
    assert (found - expected).abs().mean() < 0.1 * expected.std()


def test_halves_of_different_types_work_each(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_passes(monkeypatch)
    ours, theirs = pair(vae)
    for model in (ours, theirs):
        model.decoder.bfloat16()
        model.post_quant_conv.bfloat16()
    found, expected = results(ours, latents=LATENTS.bfloat16()), results(theirs, latents=LATENTS.bfloat16())
    assert calls == {"encode": 1, "decode": 1}
    assert {part: value.dtype for part, value in found.items()} == {"encode": torch.float32, "decode": torch.bfloat16}
    assert found["decode"].dtype == expected["decode"].dtype
    ours.decoder.conv_in.float()  # of two types in one half
    assert ours.why_plain("decode") == (
        "decoder.conv_in.weight is torch.float32 on cpu, post_quant_conv.weight torch.bfloat16 on cpu"
    )
    with pytest.raises(RuntimeError, match="type"):  # as diffusers' own pass does
        results(ours, latents=LATENTS.bfloat16())


TRANSFORMED: dict[str, Callable[[Any], Tensor]] = {
    "functional_call": lambda vae: (
        torch.func.functional_call(vae, {name: value * 1.5 for name, value in vae.named_parameters()}, (IMAGES,)).sample
    ),
    "grad": lambda vae: torch.func.grad(lambda z: vae.decode(z).sample.square().sum())(LATENTS),
    "vmap": lambda vae: torch.func.vmap(lambda z: vae.decode(z[None]).sample)(LATENTS),
    "jvp": lambda vae: _jvp(vae),
    "dual numbers": lambda vae: _dual(vae),
    "trace": lambda vae: torch.jit.trace(lambda z: vae.decode(z).sample, (LATENTS,), check_trace=False)(2 * LATENTS),
    "a mode that sees each operation": lambda vae: torch.tensor(_flops(vae)),
}


def _jvp(vae: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # the fast one has no forward derivative
        result: Tensor = torch.func.jvp(lambda z: vae.decode(z).sample, (LATENTS,), (LATENTS,))[1]
    return result


def _dual(vae: Any) -> Tensor:
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        result = forward_ad.unpack_dual(vae.decode(forward_ad.make_dual(LATENTS, LATENTS)).sample).tangent
    assert result is not None
    return result


def _flops(vae: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        vae.decode(LATENTS)
    return int(counter.get_total_flops())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TRANSFORMED)
def test_what_transforms_or_follows_the_call_sees_diffusers_own_pass(
    vae: AutoencoderKL, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_passes(monkeypatch)
    ours, theirs = pair(vae)
    try:
        TRANSFORMED[name](theirs)
    except RuntimeError as error:  # torch 2.8 has no forward derivative of a norm after channels change their order
        pytest.skip(f"torch {torch.__version__} cannot do this to diffusers' own: {error}")
    if name != "functional_call":  # which hands in tensors that are no Parameters
        results(ours)
    assert_plain(ours, theirs, TRANSFORMED[name], calls)


def patch_convolutions(patch: pytest.MonkeyPatch) -> None:
    run = nn.Conv2d._conv_forward
    patch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: 2 * run(self, x, weight, bias))


def patch_forward(patch: pytest.MonkeyPatch) -> None:
    run = nn.Conv2d.forward
    patch.setattr(nn.Conv2d, "forward", lambda self, x: run(self, 2 * x))


def patch_inner_methods(patch: pytest.MonkeyPatch) -> None:
    known: Any = AutoencoderKL
    decode, encode = known._decode, known._encode
    patch.setattr(known, "_decode", lambda self, z, **rest: decode(self, 2 * z, **rest))
    patch.setattr(known, "_encode", lambda self, x: encode(self, x / 2))


def patch_methods(patch: pytest.MonkeyPatch) -> None:
    known: Any = AutoencoderKL
    decode, encode = known.decode, known.encode
    patch.setattr(known, "decode", functools.wraps(decode)(lambda self, z, **rest: decode(self, 2 * z, **rest)))
    patch.setattr(known, "encode", functools.wraps(encode)(lambda self, x, **rest: encode(self, x / 2, **rest)))


def patch_attention(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **rest: v.flip(2))


PATCHES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "Conv2d._conv_forward": patch_convolutions,
    "Conv2d.forward": patch_forward,
    "AutoencoderKL._decode": patch_inner_methods,
    "AutoencoderKL.decode": patch_methods,
    "scaled_dot_product_attention": patch_attention,
}


@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
@pytest.mark.parametrize("name", PATCHES)
def test_what_is_patched_for_all_modules_counts(
    vae: AutoencoderKL, name: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_passes(monkeypatch)
    ours, theirs = pair(vae)
    before = results(ours) if used else results(theirs)
    PATCHES[name](monkeypatch)
    for part in before:
        assert_plain(ours, theirs, lambda model: results(model)[part], calls)  # noqa: B023 (it is called here)
        assert not torch.allclose(results(theirs)[part], before[part], atol=1e-3)


def test_convolutions_that_are_made_circular_count(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those do who patch the constructor before they load a pipeline."""
    codec, made = LatentCodec.load(vae), nn.Conv2d.__init__
    monkeypatch.setattr(
        nn.Conv2d, "__init__", lambda self, *args, **rest: made(self, *args, **{**rest, "padding_mode": "circular"})
    )
    calls = count_passes(monkeypatch)
    ours = codec.as_diffusers()
    theirs: Any = AutoencoderKL.from_config(vae.config)
    theirs.load_state_dict(vae.state_dict())
    with torch.no_grad():
        assert_plain(ours, theirs.eval(), lambda model: results(model)["decode"], calls)
        assert not torch.allclose(results(theirs)["decode"], results(vae)["decode"], atol=1e-3)


def test_hooks_of_all_modules_fire(vae: AutoencoderKL) -> None:
    ours, theirs = pair(vae)
    counts = []
    for model in (ours, theirs):
        seen: list[nn.Module] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output, seen=seen: seen.append(module)
        )
        try:
            results(model)
        finally:
            handle.remove()
        counts.append([type(module).__name__ for module in seen])
    assert counts[0] == counts[1] != []


@pytest.mark.parametrize("size", [(17, 25), (19, 24), (4, 4), (5, 30)])
def test_sizes_are_rounded_down_as_the_autoencoder_does(
    vae: AutoencoderKL, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_passes(monkeypatch)
    images = torch.rand(2, 3, *size) * 2 - 1
    for bound in (None, 2**20):
        ours = LatentCodec.load(vae).as_diffusers(max_memory=bound)
        found, expected, exact = (
            model.encode(x).latent_dist.parameters
            for model, x in ((ours, images), (vae, images), (double(vae), images.double()))
        )
        assert found.shape[2:] == (size[0] // 4, size[1] // 4)
        assert_as_exact(found, expected, exact)
    assert calls["encode"] == 2
    with pytest.raises(RuntimeError, match="Kernel size"):  # diffusers' own error
        ours.encode(images[:, :, :3])


def test_what_it_returns_is_what_the_autoencoder_returns(vae: AutoencoderKL) -> None:
    ours, theirs = pair(vae)
    exact = double(theirs)
    for posterior in (False, True):
        pictures = []
        for model, images in ((ours, IMAGES), (theirs, IMAGES), (exact, IMAGES.double())):
            # One draw for all three: a generator draws other numbers for float64.
            noise = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(2)).to(images.dtype)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, noise=noise, **__: noise)
                generator = torch.Generator().manual_seed(2)
                pictures.append(model(images, sample_posterior=posterior, generator=generator, return_dict=False)[0])
        assert_as_exact(*pictures)
    for given in ({}, {"return_dict": False}):
        assert type(ours.encode(IMAGES, **given)) is type(theirs.encode(IMAGES, **given))
        assert type(ours.decode(LATENTS, **given)) is type(theirs.decode(LATENTS, **given))


def test_what_its_class_makes_is_an_autoencoder_that_says_so(
    vae: AutoencoderKL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, _ = pair(vae)
    ours.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path)
    built = type(ours).from_config(ours.config).eval()
    built.load_state_dict(vae.state_dict())
    for again in (loaded, built):
        caplog.clear()
        with torch.no_grad(), caplog.at_level(logging.WARNING):
            assert torch.equal(again.decode(LATENTS).sample, vae.decode(LATENTS).sample)
        assert "it was made without a codec" in caplog.text


def test_a_call_ends_while_another_is_inside_of_the_codec(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair(vae)
    expected = [ours.decode(z[None]).sample for z in LATENTS]
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    run = LatentCodec.decode_raw

    def in_order(self: LatentCodec, z: Tensor, **options: Any) -> Tensor:
        if torch.equal(z, LATENTS[:1]):
            first_in.set()
            assert second_in.wait(60)
        else:
            second_in.set()
            assert first_out.wait(60)
        return run(self, z, **options)

    found: list[Tensor] = []

    def first() -> None:
        found.append(ours.decode(LATENTS[:1]).sample)
        first_out.set()

    monkeypatch.setattr(LatentCodec, "decode_raw", in_order)
    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(60)
    found.append(ours.decode(LATENTS[1:]).sample)
    thread.join()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_batch_of_none_is_as_in_the_autoencoder(vae: AutoencoderKL) -> None:
    without: Any = AutoencoderKL(block_out_channels=[8], norm_num_groups=4, mid_block_add_attention=False)
    ours, theirs = pair(without.requires_grad_(False))
    found, expected = (results(model, IMAGES[:0], LATENTS[:0]) for model in (ours, theirs))
    assert all(torch.equal(found[part], expected[part]) for part in ("encode", "decode"))
    for model in pair(vae):  # diffusers' attention takes none
        for call, given in ((model.encode, IMAGES[:0]), (model.decode, LATENTS[:0])):
            with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
                call(given)


def test_a_wrong_input_is_refused_in_a_line(vae: AutoencoderKL) -> None:
    ours, _ = pair(vae)
    for wrong in (LATENTS[0], LATENTS[:, :3], LATENTS.int()):
        with pytest.raises(UserError, match="decodes floats"):
            ours.decode(wrong)
    for wrong in (IMAGES[0], IMAGES[:, :2], IMAGES.int()):
        with pytest.raises(UserError, match="give floats"):
            ours.encode(wrong)
