"""What a run is built of: which parts train, which weights are pinned, which names are taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import train.build
from ldm_vae import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.losses.adversarial import DiscriminatorConfig, PatchAdversary
from ldm_vae.losses.perceptual import LPIPS
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.networks.network import NetworkConfig
from ldm_vae.pretrained.backbones import weights_sha256
from tests.train.conftest import Build, batches_of
from train.build import train_only
from train.health import Health
from train.log import Meter
from train.recipe import Recipe
from train.snapshot import meta_of, restore, tensors_of
from train.state import Run
from train.step import train_step


def test_what_is_not_trained_is_frozen_and_as_in_evaluation() -> None:
    model = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1))
    model.decoder.conv_in.requires_grad_(False)  # the network's own choice
    train_only(model, [model.decoder, model.heads])
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert not any(parameter.requires_grad for parameter in model.decoder.conv_in.parameters())
    assert model.decoder.conv_out.weight.requires_grad
    assert not any(module.training for module in model.encoder.modules())
    assert all(module.training for module in model.decoder.modules())


@pytest.mark.parametrize("names", [("discriminator", "discriminator"), ("ema",), ("model",), ("optimizer_model",)])
def test_an_adversary_has_a_name_of_its_own(
    build: Build, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    adversaries = [PatchAdversary(DiscriminatorConfig(channels=8, layers=2), name) for name in names]
    monkeypatch.setattr(train.build, "build_adversaries", lambda recipe: adversaries)
    with pytest.raises(ValueError, match="a name of its own"):
        build()


def test_a_run_pins_its_frozen_network_and_no_checkpoint_holds_it(build: Build) -> None:
    run, recipe = build()
    lpips = LPIPS("alex").state_dict()
    assert recipe.loss.perceptual.weights_sha256 == weights_sha256(lpips)
    groups = tensors_of(run, Meter())
    assert groups.keys() == {"model", "ema", "state", "discriminator", "optimizer_model", "optimizer_discriminator"}
    saved = {weights_sha256({"": value}) for tensors in groups.values() for value in tensors.values()}
    assert not saved & {weights_sha256({"": value}) for value in lpips.values() if value.std() > 0}
    with pytest.raises(UserError, match=r"loss.perceptual: the frozen network's weights are"):
        build(f"loss.perceptual.weights_sha256={'f' * 64}")


class WithBackbone(PatchAdversary):
    """A critic whose first layer is a frozen network."""

    first_value = 1.0

    def build(self, model: NetworkConfig) -> nn.Module:
        backbone = nn.Conv2d(model.out_channels, model.out_channels, 1).requires_grad_(False)
        backbone.weight.fill_(self.first_value)
        return nn.Sequential(backbone, super().build(model))


def test_frozen_weights_of_a_critic_are_pinned_by_the_checkpoint(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def critic(recipe: Recipe) -> list[PatchAdversary]:
        assert recipe.discriminator is not None
        return [WithBackbone(DiscriminatorConfig(channels=8, layers=2))]

    monkeypatch.setattr(train.build, "build_adversaries", critic)
    run, recipe = build()
    health = Health(run.accelerator)
    tensors = tensors_of(run, Meter())
    assert "0.weight" not in tensors["discriminator"] and "1.main.0.weight" in tensors["discriminator"]
    Checkpoint.write(tmp_path / "saved", tensors, meta_of(run, recipe, "data", Meter(), health, 0))
    checkpoint = Checkpoint.open(tmp_path / "saved")
    again, _ = build()
    restore(again, Meter(), health, checkpoint)
    monkeypatch.setattr(WithBackbone, "first_value", 2.0)
    other, _ = build()
    with pytest.raises(UserError, match="the frozen weights of discriminator differ from those of"):
        restore(other, Meter(), health, checkpoint)


class Poisoned(PatchAdversary):
    """A critic whose loss is not finite."""

    def loss(
        self, network: nn.Module, pair: tuple[torch.Tensor, ...], step: int
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        loss, values = super().loss(network, pair, step)
        return loss * float("nan"), values


@pytest.mark.parametrize("order", ["shared", "compvis"])
def test_adversaries_change_together_or_not_at_all(build: Build, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    from train.step import TRAIN_STEPS

    config = DiscriminatorConfig(channels=8, layers=2)
    first, second = PatchAdversary(config, "first"), Poisoned(config, "second")
    monkeypatch.setattr(train.build, "build_adversaries", lambda recipe: [first, second])
    run, recipe = build()
    before = _weights_of(run)
    TRAIN_STEPS[order](run, batches_of(run, recipe, 1)[0], 0)
    assert int(run.guard.skipped) == 1
    for name, value in _weights_of(run).items():
        assert torch.equal(value, before[name]), name
    monkeypatch.setattr(train.build, "build_adversaries", lambda recipe: [first, PatchAdversary(config, "second")])
    run, recipe = build()
    train_step(run, batches_of(run, recipe, 1)[0], 0)
    assert all(not torch.equal(value, before[name]) for name, value in _weights_of(run).items() if "0.weight" in name)


def _weights_of(run: Run) -> dict[str, torch.Tensor]:
    """Copies of the critics' weights."""
    return {
        f"{critic}/{name}": value.clone()
        for critic, network in run.critics.items()
        for name, value in network.state_dict().items()
    }
