from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ldm_vae.networks.kl import Autoencoder
from ldm_vae.piecewise.chains.kl import decoder_steps, encoder_steps
from ldm_vae.piecewise.steps import AttentionStep, ChainStep, DownsampleStep, ResidualStep, UpsampleStep

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(("height", "width"), [(7, 5), (4, 11), (1, 1)])
@pytest.mark.parametrize("decode", [True, False])
def test_rows_of_every_step_are_those_of_the_whole(
    network: Callable[..., Autoencoder], height: int, width: int, decode: bool
) -> None:
    model = network(attention_levels=(1,)).double()
    size = (height, width) if decode else (4 * height, 4 * width)
    steps: Sequence[ChainStep] = decoder_steps(model, *size) if decode else encoder_steps(model, *size)
    kinds = {type(step) for step in steps}
    assert {ResidualStep, AttentionStep, UpsampleStep if decode else DownsampleStep} <= kinds
    with torch.no_grad():
        for step in steps:
            axis, rows = step.axis, step.above.rows
            x = torch.randn(1, step.below.channels, *_sides(axis, step.below.rows, step.below.cross)).double()
            prepare(step, x)
            whole = step.forward(x, 0, rows)
            assert whole.shape == (1, step.above.channels, *_sides(axis, rows, step.above.cross))
            for first in range(rows):
                for end in {first + 1, min(first + 2, rows), min(first + 3, rows), rows}:
                    low, high = step.needs(first, end)
                    assert 0 <= low < high <= step.below.rows and high - low <= step.rows_below(end - first)
                    part = step.forward(x.narrow(axis, low, high - low), first, end)
                    torch.testing.assert_close(part, whole.narrow(axis, first, end - first), rtol=0, atol=1e-12)


def prepare(step: ChainStep, x: Tensor) -> None:
    """Everything that the step must know of its whole input."""
    if step.norm is not None:
        step.norm.gather(x)
    if isinstance(step, ResidualStep):
        step.hidden_norm.gather(step.first.forward(x, 0, step.above.rows))
    if isinstance(step, AttentionStep):
        step.remember(x)


def _sides(axis: int, rows: int, cross: int) -> tuple[int, int]:
    return (rows, cross) if axis == 2 else (cross, rows)


@pytest.mark.parametrize("decode", [True, False])
def test_chain_is_the_network(network: Callable[..., Autoencoder], decode: bool) -> None:
    model = network(attention_levels=(1, 2)).double()
    x = torch.randn(1, 4, 3, 5).double() if decode else torch.rand(1, 3, 12, 20).double()
    steps = decoder_steps(model, 3, 5) if decode else encoder_steps(model, 12, 20)
    with torch.no_grad():
        expected = model.decode(x) if decode else model.encode(x)
        for step in steps:
            prepare(step, x)
            x = step.forward(x, 0, step.above.rows)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-11)  # float64 through 20 layers
