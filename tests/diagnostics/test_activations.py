"""The range of activations of a real network, with weights that overflow float16 and ones that do not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.data.stream.batch import Batch
from ldm_vae.diagnostics.activations import find_block, inspect_activations
from ldm_vae.diagnostics.probes import Probes
from ldm_vae.latents.measure import largest_outputs, measure_latents
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.diagnostics.conftest import FACTOR, pictures
from tests.diagnostics.values import value
from tests.kl import autoencoder_in

pytestmark = pytest.mark.numerical

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4, attention_levels=(1,))


@pytest.fixture
def network() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False))


@pytest.mark.parametrize(("peak", "expected"), [(100.0, "good"), (3e4, "warning"), (1e6, "bad")])
def test_float16(
    network: LatentCodec,
    probes_of: Callable[[LatentCodec, Tensor], Probes],
    peak: float,
    expected: str,
) -> None:
    """The last convolution alone is scaled: its output, the image, is then the largest, and half types agree."""
    factor = peak / probes_of(network, pictures(2)).reconstruction.abs().max()
    last = autoencoder_in(network.model).decoder.conv_out
    assert last.bias is not None
    last.weight.mul_(factor)
    last.bias.mul_(factor)
    probes = probes_of(network, pictures(2))
    section = inspect_activations(network, probes)
    verdict = section.verdicts[0]
    assert verdict.level == expected
    largest = float(probes.reconstruction.abs().max())
    assert largest == pytest.approx(peak, rel=1e-3)
    assert value(section, "largest_activation") == pytest.approx(largest)
    assert value(section, "float16_margin") == pytest.approx(65504 / largest)
    assert ("force_upcast" in verdict.advice) == (expected != "good")
    assert (expected == "bad") == bool(probes.reconstruction.half().isinf().any())


def test_every_block_is_shown(network: LatentCodec, probes_of: Callable[[LatentCodec, Tensor], Probes]) -> None:
    """Blocks and lone layers, in the order of the data; every module that has weights is in one of them."""
    section = inspect_activations(network, probes_of(network, pictures(1)))
    bars = section.charts[0].lines[0]
    assert bars.x[:2] == ("encoder.conv_in", "encoder.down_blocks.0.resnets.0")
    assert bars.x[-1] == "decoder.conv_out"
    weighted = {name.rpartition(".")[0] for name, _ in network.model.named_parameters()}
    assert all(any(f"{name}.".startswith(f"{block}.") for block in bars.x) for name in weighted)
    assert all(isinstance(y, float) and y > 0 for y in bars.y)


def test_blocks_of_the_kl_network_are_known_by_its_names(network: LatentCodec) -> None:
    block = re.compile(
        r".*?(?:(?:resnets|attentions|downsamplers|upsamplers)\.\d+|(?:conv_in|conv_norm_out|conv_out|quant_conv))(?=\.|$)"
    )
    with largest_outputs(network.model) as outputs:
        network.reconstruct(pictures(1))
    expected = {name: match[0] if (match := block.match(name)) else None for name in outputs}
    assert len(set(expected.values())) > 20
    assert {name: find_block(network.model, name) for name in outputs} == expected


def test_blocks_of_any_network(
    patches: Callable[[str], LatentCodec], probes_of: Callable[[LatentCodec, Tensor], Probes]
) -> None:
    codec = patches("rounded")  # its indices are no activations
    probes = probes_of(codec, pictures(2))
    bars = inspect_activations(codec, probes).charts[0].lines[0]
    assert bars.x == ("analysis", "synthesis")
    assert bars.y[1] == pytest.approx(float(probes.reconstruction.abs().max()))


def test_a_network_without_modules_that_return_tensors(
    patches: Callable[[str], LatentCodec], probes_of: Callable[[LatentCodec, Tensor], Probes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    codec = patches("deterministic")
    monkeypatch.setattr(codec.model, "encode", lambda image: F.avg_pool2d(image.repeat(1, 2, 1, 1)[:, :4], FACTOR))
    monkeypatch.setattr(codec.model, "decode", lambda z: F.interpolate(z[:, :3], scale_factor=FACTOR))
    (verdict,) = inspect_activations(codec, probes_of(codec, pictures(2))).verdicts
    assert (verdict.level, verdict.statement[:21]) == ("unknown", "Not measured, because")
    batch = Batch(pictures(2), None, ["a", "b"], torch.arange(2))
    assert measure_latents(codec, [batch]).activation is None


def test_a_codec_that_overflows_in_its_own_type_says_so(
    network: LatentCodec, probes_of: Callable[[LatentCodec, Tensor], Probes]
) -> None:
    """float16 overflows inside, the codec computes again in float32, and the reconstruction is finite."""
    autoencoder_in(network.model).decoder.conv_in.weight.mul_(1.5e5)  # normalised again right after
    network.model.half()
    probes = probes_of(network, pictures(2))
    assert probes.reconstruction.isfinite().all()
    section = inspect_activations(network, probes)
    assert value(section, "largest_activation") is None
    assert "infinity in float16" in section.numbers[0].missing
    assert section.verdicts[0].level == "bad"
    assert None in section.charts[0].lines[0].y
