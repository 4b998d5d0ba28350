import logging

import pytest
import torch
from accelerate import Accelerator

from ldm_vae.waiting import POLICY_VARIABLES
from train.health import Health

STEADY = {"pixel": 0.1, "perceptual": 0.3, "rate": 500.0, "gradient_norm/model": 100.0, "discriminator_accuracy": 0.7}
STEADY |= {"discriminator": 0.01, "generator": -0.01, "total": 1e-3}


@pytest.fixture
def health() -> Health:
    """One that has seen ten rows of a run that goes well."""
    health = Health(Accelerator())
    for step in range(10):
        assert health.judge(step, STEADY) == []
    return health


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pixel": 1.0}, "pixel jumped to 1, 10 times its running mean; lower optimizer.lr"),
        ({"gradient_norm/model": 1e6}, "gradient_norm/model is 1e+06"),
        ({"gradient_norm/model": 1e-3}, "gradient_norm/model is 0.001"),
        ({"discriminator_accuracy": 0.999}, "it has won"),
        ({"logits_fake": -50.0}, "they run away"),
        ({"logits_real": -50.0}, "they run away"),
        ({"validation/active_channels_share": 0.25}, "only 25% of the latent channels carry information"),
        ({"validation/reconstruction_spread": 1e-6}, "different images have the same reconstruction"),
        ({"time/broken_share": 0.05}, "5.0% of the training images are broken"),
        ({"validation/left_out": 1, "validation/images": 3}, "25.0% of the validation images are broken"),
    ],
)
def test_says_what_it_saw_and_what_to_try(
    health: Health, change: dict[str, float], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="train"):
        (warning,) = health.judge(11, STEADY | change)
    assert said in warning
    assert "; " in warning  # the remedy
    assert said in caplog.text


def test_broken_images_are_told_once_and_again_when_they_have_doubled(health: Health) -> None:
    said = [len(health.judge(step, {"time/broken_share": step / 100})) for step in range(10)]
    assert said == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0]


def test_a_busy_machine_is_told_once_where_threads_spin(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = {"time/load_of_others": 99.0}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in POLICY_VARIABLES:
        monkeypatch.setenv(name, "1")
        assert health.judge(11, busy) == []  # a person, or this program at the start, has chosen
        monkeypatch.delenv(name)
    assert health.judge(11, {"time/load_of_others": 0.1}) == []
    (warning,) = health.judge(12, busy)
    assert "a load of 99.0 beside this run's own" in warning and "; stop the run (Ctrl-C saves)" in warning
    assert health.judge(13, busy) == []


def test_one_thread_waits_for_no_other(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in POLICY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert health.judge(11, {"time/load_of_others": 99.0}) == []


def test_late_images_are_told_once_where_they_stay_late(health: Health) -> None:
    late, in_time = {"time/data": 0.3}, {"time/data": 0.05}
    said = [health.judge(step, row) for step, row in enumerate([late] * 4 + [in_time] + [late] * 9)]
    assert [len(warnings) for warnings in said] == [0] * 9 + [1] + [0] * 4  # the fifth in a row, and no other
    assert said[9] == ["the device waits for images 30% of the time; raise data.workers if cores are free"]


def test_what_may_be_around_zero_does_not_jump(health: Health) -> None:
    assert health.judge(11, {"discriminator": 0.2, "generator": 0.5, "total": 0.2}) == []


def test_reconstructions_of_one_image_are_the_same(health: Health) -> None:
    assert health.judge(11, {"validation/reconstruction_spread": 0.0, "validation/images": 1}) == []


def test_a_slow_change_is_no_jump(health: Health) -> None:
    value = 0.1
    for step in range(100):
        value *= 1.05
        assert health.judge(step, {"pixel": value}) == []


def test_values_that_are_not_finite_leave_the_running_mean_alone(health: Health) -> None:
    health.judge(11, {"pixel": float("nan")})
    assert health.judge(12, {"pixel": 0.1}) == []
