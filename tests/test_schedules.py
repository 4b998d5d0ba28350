import math
from itertools import pairwise

import pytest

from ldm_vae.schedules import Decay, ramp, warmup_decay


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
