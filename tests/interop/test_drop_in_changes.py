"""What users of diffusers do to an AutoencoderKL counts in the drop-in, before its first use and after it."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from ldm_vae import LatentCodec, UserError
from tests.interop.changes import CHANGES, CODEC, PLAIN, SAME, changed, circular, replace_decoder
from tests.interop.passes import IMAGES, LATENTS, count_passes, results
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
@pytest.mark.parametrize("name", [*CHANGES, *SAME])
def test_what_is_done_to_it_counts(vae: AutoencoderKL, name: str, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an AutoencoderKL to which the same is done.

    diffusers' own pass gives its very numbers. The codec sums in another order, so it is held to float32's rounding.
    """
    change, *passes = {**CHANGES, **SAME}[name]
    with torch.no_grad():  # changes that make new parameters would ask for gradients
        before = results(vae)
        ours = LatentCodec.load(copy.deepcopy(vae)).as_diffusers()
        if used:
            results(ours)
        ours = changed(ours, change)
        calls = count_passes(monkeypatch)
        found = results(ours)
        expected = results(changed(copy.deepcopy(vae), change))
        assert [CODEC if calls[part] else PLAIN for part in ("encode", "decode")] == passes
        for part, taken in zip(("encode", "decode"), passes, strict=True):
            assert (ours.why_plain(part) is None) == (taken == CODEC)
            if taken == PLAIN:
                assert torch.equal(found[part], expected[part])
            else:
                images, latents = IMAGES.double(), LATENTS.double()
                exact = results(changed(double(vae), change), images, latents)
                assert_as_exact(found[part], expected[part], exact[part])
            moved = (found[part] - before[part]).abs().max()
            untouched = part == "encode" and name == "vae.decoder = other"
            assert moved > 0.01 * before[part].std() or name in SAME or untouched, "the change changes nothing"


@pytest.mark.parametrize("name", [name for name, (_, *passes) in CHANGES.items() if passes == [PLAIN, PLAIN]])
def test_a_codec_cannot_be_loaded_from_a_changed_autoencoder(vae: AutoencoderKL, name: str) -> None:
    """A codec shares its tensors, not its modules: what they compute by now would be lost."""
    with torch.no_grad(), pytest.raises(UserError, match="does not compute what its configuration says: ") as error:
        LatentCodec.load(changed(vae, CHANGES[name][0]))
    assert "\n" not in str(error.value)


def test_a_change_is_told_once_with_its_reason(vae: AutoencoderKL, caplog: pytest.LogCaptureFixture) -> None:
    ours = LatentCodec.load(vae).as_diffusers(max_memory=2**20)
    results(ours)
    assert caplog.text == ""
    circular(ours)
    for _ in range(2):
        results(ours)
    told = [record.message for record in caplog.records]
    bound = "runs diffusers' own pass, whole or in its tiles, and max_memory of 1,048,576 bytes is not kept"
    assert told == [
        f"encode {bound}: encoder.conv_in.padding_mode is circular",
        f"decode {bound}: post_quant_conv.padding_mode is circular",
    ]
    for module in ours.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    assert ours.why_plain("encode") is None and ours.why_plain("decode") is None


def test_what_is_replaced_is_freed(vae: AutoencoderKL) -> None:
    ours = LatentCodec.load(vae).as_diffusers()
    results(ours)
    old = weakref.ref(ours.decoder.conv_in.weight)
    assert old() is not None
    replace_decoder(ours)
    assert old() is None
    ours.encoder = ours.quant_conv = None  # as those do who only decode
    assert ours.why_plain("decode") is None
    replace_decoder(vae)
    exact = double(vae).decode(LATENTS.double()).sample
    assert_as_exact(ours.decode(LATENTS).sample, vae.decode(LATENTS).sample, exact)


def test_weights_that_change_change_the_retry_in_float32(vae: AutoencoderKL) -> None:
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5)  # beyond float16; the norm that follows makes it harmless
        ours = LatentCodec.load(copy.deepcopy(vae)).as_diffusers().half()
        for _ in range(2):
            found = ours.decode(LATENTS.half()).sample
            expected = vae.decode(LATENTS).sample
            assert (found - expected).abs().mean() < 0.1 * expected.std()  # the weights were rounded to 11 bits
            for model in (vae, ours):
                model.decoder.conv_out.weight.data.neg_()
