"""Linear decoders have a known gain and no detour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.probes import Probes
from ldm_vae.diagnostics.smoothness import STEPS_PER_LINE, inspect_smoothness, line_steps
from tests.diagnostics.conftest import Averaging, averaging, pictures
from tests.diagnostics.values import heights, level, measured, value

pytestmark = pytest.mark.numerical

Make = Callable[[LatentCodec, Tensor], Probes]


@pytest.mark.parametrize("gain", [1.0, 7.0])
def test_a_linear_decoder(probes_of: Make, gain: float) -> None:
    """Noise of one latent deviation, decoded, is one deviation of the averages, whatever factor the latents have."""
    codec, images = averaging(gains=[gain] * 3), pictures(8)
    probes = probes_of(codec, images)
    section = inspect_smoothness(codec, probes, seed=0)
    averages = probes.z / gain
    expected = averages.std(correction=0) / images.std(dim=(0, 2, 3), correction=0).square().mean().sqrt()
    # 6144 numbers of noise: their root mean square errs by 1 / sqrt(2 * 6144) = 0.9 %
    assert value(section, "gain") == pytest.approx(float(expected), rel=0.03)
    assert level(section, "smoothness") == "good"
    assert value(section, "detour") == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(line_steps(codec, probes.z[0], probes.z[1]), 1 / STEPS_PER_LINE, rtol=1e-4)
    np.testing.assert_allclose(heights(section.charts[0].lines[0]), 1.0, rtol=1e-4)  # of an even share, at every step


class Folded(Averaging):
    """A decoder that goes there and back: the picture is a wave of the latent."""

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(torch.sin(40 * z))


def test_a_folded_decoder_makes_a_detour(probes_of: Make) -> None:
    codec = LatentCodec(Folded(3, [1.0] * 3, -6.0).eval().requires_grad_(False))
    section = inspect_smoothness(codec, probes_of(codec, pictures(4)), seed=0)
    assert measured(section, "detour") > 2
    assert measured(section, "gain") > 4
    assert level(section, "smoothness") == "bad"


def test_one_image_has_no_line(codec: LatentCodec, probes_of: Make) -> None:
    section = inspect_smoothness(codec, probes_of(codec, pictures(1)), seed=0)
    assert value(section, "detour") is None
    assert (
        next(number.missing for number in section.numbers if number.name == "detour") == "it takes two different images"
    )
    assert value(section, "gain") is not None
    flat = inspect_smoothness(codec, probes_of(codec, torch.zeros(2, 3, 64, 64)), seed=0)
    assert value(flat, "gain") is None
    assert level(flat, "smoothness") == "unknown"
