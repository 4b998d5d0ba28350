import math
from fractions import Fraction
from functools import partial
from itertools import pairwise

import pytest
from scipy.special import expit

from ldm_vae.schedules import Decay, Rise, ramp, rise, warmup_decay

ONCE = partial(rise, cycles=4, rising=0.5)  # for shapes that do not read them


def test_ramp_is_zero_before_continuous_after_and_stays_at_one() -> None:
    values = [ramp(step, start=10, length=4) for step in range(20)]
    assert values[:11] == [0.0] * 11  # 0 still at the start itself, so that nothing jumps
    assert values[11:15] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[15:] == [1.0] * 5


def test_ramp_without_length_is_a_step() -> None:
    assert [ramp(step, start=2, length=0) for step in range(4)] == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_learning_rate_reaches_full_after_the_warmup_and_final_at_the_last_step(decay: Decay) -> None:
    factors = [warmup_decay(step, warmup=5, decay=decay, final=0.1, steps=50) for step in range(50)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert factors[-1] == pytest.approx(1.0 if decay == "constant" else 0.1)
    assert all(later <= earlier for earlier, later in pairwise(factors[5:]))


def test_cosine_halfway() -> None:
    middle = warmup_decay(50, warmup=0, decay="cosine", final=0.0, steps=101)
    assert middle == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_a_linear_rise_is_the_ramp_to_the_bit() -> None:
    for length in (0, 1, 7, 10):
        assert [ONCE(n, shape="linear", length=length) for n in range(15)] == [ramp(n, 0, length) for n in range(15)]


@pytest.mark.parametrize("shape", ["linear", "sigmoid", "cosine"])
def test_a_rise_goes_from_exactly_0_to_exactly_1_and_never_down(shape: Rise) -> None:
    values = [ONCE(step, shape=shape, length=30) for step in range(40)]
    assert values[0] == 0.0 and values[30:] == [1.0] * 10
    assert all(0.0 < later - earlier < 0.15 for earlier, later in pairwise(values[:31]))
    assert values[15] == pytest.approx(0.5, abs=1e-15)


def test_shapes_of_a_rise_against_their_formulas() -> None:
    for step in range(30):
        share = step / 30
        stretched = (expit(12 * (share - 0.5)) - expit(-6)) / (expit(6) - expit(-6))
        assert ONCE(step, shape="sigmoid", length=30) == pytest.approx(stretched, abs=1e-14)  # rounding
        assert ONCE(step, shape="cosine", length=30) == pytest.approx(math.sin(math.pi * share / 2) ** 2, abs=1e-14)
        assert ONCE(step, shape="constant", length=30) == 1.0


def test_a_cyclical_rise_is_that_of_fu() -> None:
    """Fu et al. 2019: tau = mod(t - 1, ceil(T / M)) / (T / M) for t = 1, 2, ...; tau / R up to R, then 1."""
    steps, cycles, rising = 60, 3, 0.4
    for t in range(1, steps + 1):
        tau = ((t - 1) % math.ceil(steps / cycles)) / (steps / cycles)
        expected = tau / rising if tau <= rising else 1.0
        assert rise(t - 1, shape="cyclical", length=steps, cycles=cycles, rising=rising) == pytest.approx(expected)
    assert [rise(step, shape="cyclical", length=60, cycles=3, rising=0.4) for step in (0, 20, 40)] == [0.0] * 3
    assert rise(60, shape="cyclical", length=60, cycles=3, rising=0.4) == 1.0  # the last cycle does not begin anew


def test_cycles_of_no_whole_number_of_steps_do_not_drift() -> None:
    for step in range(100):
        cycle = Fraction(step * 7, 100)
        expected = min((cycle - math.floor(cycle)) / Fraction(1, 2), Fraction(1))
        assert rise(step, shape="cyclical", length=100, cycles=7, rising=0.5) == pytest.approx(float(expected))
