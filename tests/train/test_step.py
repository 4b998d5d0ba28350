"""The training step against plain formulations of what it should do."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm_vae.losses.adaptive import adaptive_weight
from tests.kl import autoencoder_in
from tests.train.conftest import Build, batches_of, state_of
from train.step import TRAIN_STEPS, autoencoder_gradients, train_step, train_step_compvis

pytestmark = pytest.mark.numerical


def _largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Over all tensors, relative to each one's largest value where that is above 1 (second moments are large)."""
    assert ours.keys() == theirs.keys()
    return max(
        (ours[name] - theirs[name]).abs().max().item() / max(1.0, theirs[name].abs().max().item()) for name in ours
    )


def test_accumulation_of_four_by_one_equals_one_by_four(build: Build) -> None:
    fixed = ("precision=float64", "discriminator.adaptive=false", "discriminator.weight=50")
    states = []
    for accumulation in (1, 4):
        run, recipe = build(*fixed, f"optimizer.accumulation={accumulation}")
        for step, micro_batches in enumerate(batches_of(run, recipe, 5)):
            assert len(micro_batches) == accumulation
            values = train_step(run, micro_batches, step)
        assert values["generator_weight"] > 0  # all losses are on in the end
        states.append(state_of(run))
    # float64, another order of sums; Adam's eps of 1e-8 enlarges rounding of 1e-16 where a true gradient is 0
    assert _largest_difference(*states) < 1e-8


def test_adaptive_weight_under_accumulation_is_each_micro_batchs_own(build: Build) -> None:
    run, recipe = build("precision=float64", "optimizer.accumulation=2")
    step = 5  # the ramp is over
    micro_batches = batches_of(run, recipe, 1)[0]
    values, _, _ = autoencoder_gradients(run, micro_batches, step)
    weights = []
    for batch in micro_batches:
        output = run.autoencoder(batch.image, noise=run.noise(batch, step))
        lpips = run.objective.reconstruction_terms[1].term(output, batch, step)
        nll = (output.reconstruction - batch.image).abs().sum() / len(batch.image) + lpips.mean()
        generator = -run.critics["discriminator"](output.reconstruction).mean()
        last = autoencoder_in(run.autoencoder).decoder.conv_out.weight
        gradients = [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (nll, generator)]
        weights.append(0.5 * (gradients[0].norm() / (gradients[1].norm() + 1e-4)).clamp(0, 1e4))
    assert weights[0] != weights[1]
    torch.testing.assert_close(values["generator_weight"], torch.stack(weights).mean(), rtol=1e-9, atol=0)


def test_discriminator_learns_from_the_reconstructions_of_the_same_forward(build: Build) -> None:
    run, recipe = build("precision=float64", "optimizer.lr=1e-9")
    micro_batches = batches_of(run, recipe, 1)[0]
    (batch,) = micro_batches
    step = 5
    with torch.no_grad():
        fake = run.autoencoder(batch.image, noise=run.noise(batch, step)).reconstruction
        real_logits, fake_logits = run.critics["discriminator"](batch.image), run.critics["discriminator"](fake)
        expected = 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
    values = train_step(run, micro_batches, step)
    torch.testing.assert_close(values["discriminator"], expected, rtol=1e-9, atol=0)
    right = torch.cat([real_logits > 0, fake_logits < 0]).double().mean()
    assert 0 < right < 1
    torch.testing.assert_close(values["discriminator_accuracy"], right, rtol=1e-9, atol=0)
    torch.testing.assert_close(values["logits_real"], real_logits.mean(), rtol=1e-9, atol=0)
    torch.testing.assert_close(values["logits_fake"], fake_logits.mean(), rtol=1e-9, atol=0)


def test_compvis_order_recomputes_the_reconstructions_after_the_update(build: Build) -> None:
    run, recipe = build("precision=float64", "optimizer.lr=1e-2", "optimizer.warmup=0", "discriminator.order=compvis")
    micro_batches = batches_of(run, recipe, 1)[0]
    (batch,) = micro_batches
    step = 1  # the discriminator learns, the generator does not feel it yet
    before = {name: value.clone() for name, value in run.critics["discriminator"].state_dict().items()}
    values = train_step_compvis(run, micro_batches, step)
    with torch.no_grad():
        fake = run.autoencoder(batch.image, noise=run.noise(batch, step)).reconstruction  # by the updated weights
        run.critics["discriminator"].load_state_dict(before)
        expected = 0.5 * (
            F.relu(1 - run.critics["discriminator"](batch.image)).mean()
            + F.relu(1 + run.critics["discriminator"](fake)).mean()
        )
    torch.testing.assert_close(values["discriminator"], expected, rtol=1e-9, atol=0)


def test_discriminator_has_a_head_start_and_the_generator_a_ramp(build: Build) -> None:
    run, recipe = build()
    rows = [train_step(run, micro, step) for step, micro in enumerate(batches_of(run, recipe, 5))]
    assert ["discriminator" in row for row in rows] == [False, True, True, True, True]  # start: 1
    assert ["generator" in row for row in rows] == [False, False, False, True, True]  # generator_start: 2, at 0 there
    updates = {
        name: float(value) for name, value in run.updates["discriminator"].state().items() if name[:5] == "step/"
    }
    assert set(updates.values()) == {4.0}


@pytest.mark.parametrize("order", ["shared", "compvis"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_bad_image_changes_nothing_and_is_counted(build: Build, norm: str, order: str) -> None:
    run, recipe = build(f"discriminator.norm={norm}", f"discriminator.order={order}")
    step_of = TRAIN_STEPS[order]
    batches = batches_of(run, recipe, 5)
    for step in range(4):
        step_of(run, batches[step], step)
    before = state_of(run)
    assert norm == "group" or any("running_mean" in name for name in before)
    image = batches[4][0].image.clone()
    image[1, 0, 3, 3] = float("nan")
    step_of(run, [dataclasses.replace(batches[4][0], image=image)], 4)
    after = state_of(run)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert int(run.guard.skipped) == 1
    assert run.guard.suspects() == {"4": batches[4][0].key}
    step_of(run, batches[4], 4)
    assert int(run.guard.in_a_row) == 0
    trained = autoencoder_in(run.autoencoder).decoder.conv_out.weight
    assert not torch.equal(before["model/decoder.conv_out.weight"], trained)


def test_only_the_decoder_trains_where_asked_for(build: Build, tmp_path: Path) -> None:
    from ldm_vae.interop.checkpoint import Checkpoint

    source, recipe = build()
    Checkpoint.write(
        tmp_path / "codec",
        {"ema": source.autoencoder.state_dict()},
        {"step": 1, "model": source.autoencoder.config.model_dump(mode="json")},
    )
    run, recipe = build(f"model.init_from={tmp_path / 'codec'}", "model.train=decoder")
    before = state_of(run)
    given = autoencoder_in(source.autoencoder).encoder.conv_in.weight
    assert torch.equal(before["model/encoder.conv_in.weight"], given)
    for step, micro_batches in enumerate(batches_of(run, recipe, 3)):
        train_step(run, micro_batches, step)
    after = state_of(run)
    changed = {name.split("/")[1].split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "decoder" in changed and "post_quant_conv" in changed
    assert not {"encoder", "quant_conv"} & {
        name.split("/")[1].split(".")[0]
        for name in before
        if name.startswith(("model/", "ema/")) and not torch.equal(before[name], after[name])
    }


def test_gradients_are_clipped_and_the_norm_is_that_before(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recipe = build("optimizer.clip=1.0")
    update = run.updates["model"]
    seen: list[torch.Tensor] = []
    step_of_optimizer = update.optimizer.step

    def watched_step() -> None:
        seen.append(update.gradient_norm())
        step_of_optimizer()

    monkeypatch.setattr(update.optimizer, "step", watched_step)
    values = train_step(run, batches_of(run, recipe, 1)[0], 0)
    assert values["gradient_norm/model"] > 100
    assert seen[0].item() == pytest.approx(1.0, rel=1e-4)  # clip_grad_norm_ divides by norm + 1e-6


@pytest.mark.parametrize(("order", "forwards"), [("shared", 1), ("compvis", 2)])
def test_one_forward_of_the_autoencoder_per_micro_batch(build: Build, order: str, forwards: int) -> None:
    run, recipe = build(f"discriminator.order={order}")
    calls: list[int] = []
    autoencoder_in(run.autoencoder).encoder.register_forward_hook(lambda *_: calls.append(1))
    TRAIN_STEPS[order](run, batches_of(run, recipe, 1)[0], 5)
    assert len(calls) == forwards


def test_adaptive_weight_is_not_computed_while_its_factor_is_zero(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return adaptive_weight(*args, **kwargs)

    monkeypatch.setattr("ldm_vae.losses.objective.adaptive_weight", counted)
    run, recipe = build()
    batches = batches_of(run, recipe, 1)[0]
    train_step(run, batches, 2)
    assert calls == []
    train_step(run, batches, 3)
    assert calls == [1]


def test_a_run_of_bad_steps_between_two_looks_of_the_host_is_not_forgotten(build: Build) -> None:
    run, recipe = build("optimizer.patience=2")
    batches = batches_of(run, recipe, 5)
    for step, bad in enumerate([False, True, True, False, True]):
        image = batches[step][0].image.clone()
        image[0] = float("nan") if bad else image[0]
        train_step(run, [dataclasses.replace(batches[step][0], image=image)], step)
    assert int(run.guard.in_a_row) == 1
    assert run.guard.exhausted()
    assert run.guard.suspects() == {str(step): batches[step][0].key for step in (1, 2)}


class QuarterTurn:
    """A view that two processes, and both orders of a step, must take alike."""

    def image(self, image: torch.Tensor) -> torch.Tensor:
        return image.rot90(dims=(2, 3))

    latent = image


@pytest.mark.parametrize("order", ["shared", "compvis"])
def test_the_step_passes_the_view_to_all_its_forwards(build: Build, order: str) -> None:
    run, recipe = build("precision=float64", "optimizer.lr=1e-9", f"discriminator.order={order}")
    drawn: list[int] = []

    def turned(step: int, generator: np.random.Generator) -> QuarterTurn:
        drawn.append(int(generator.integers(2**31)))
        return QuarterTurn()

    run = dataclasses.replace(run, views=turned)
    micro_batches = batches_of(run, recipe, 1)[0]
    (batch,) = micro_batches
    step = 5
    with torch.no_grad():
        output = run.autoencoder(batch.image, noise=run.noise(batch, step), view=QuarterTurn())
        pixel = (output.reconstruction - batch.image.rot90(dims=(2, 3))).abs().mean()
        real = run.critics["discriminator"](batch.image.rot90(dims=(2, 3))).mean()
    values = TRAIN_STEPS[order](run, micro_batches, step)
    torch.testing.assert_close(values["pixel"], pixel, rtol=1e-9, atol=0)
    torch.testing.assert_close(values["logits_real"], real, rtol=1e-9, atol=0)
    assert len(drawn) == {"shared": 1, "compvis": 2}[order] and len(set(drawn)) == 1
