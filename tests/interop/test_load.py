"""What a reference to a model may be, and what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae.atomic import remove_folder
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.diffusers import STATISTICS
from ldm_vae.interop.load import load_model, weights_hash
from ldm_vae.losses.pixel import LOG_VARIANCE_HEAD, LogVariance
from ldm_vae.metrics.latent import LatentMoments, LatentStatistics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.kl import autoencoder_in

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1)


def save(run: Path, step: int, *, ema: bool = True) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(step)
    groups = {"model": Autoencoder(CONFIG, {LOG_VARIANCE_HEAD: LogVariance()}).state_dict()}
    if ema:
        groups["ema"] = Autoencoder(CONFIG, {LOG_VARIANCE_HEAD: LogVariance()}).state_dict()
    meta = {"step": step, "model": CONFIG.model_dump(mode="json")}
    Checkpoint.write(run / "checkpoints" / f"step_{step:08d}", groups, meta)
    return groups


def test_run_gives_the_ema_weights_of_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    second = save(tmp_path, 2)
    save(tmp_path, 3)
    (tmp_path / "checkpoints" / "step_00000003" / "ema.safetensors").write_bytes(b"torn")
    loaded = load_model(tmp_path)
    assert (loaded.source.step, loaded.source.weights) == (2, "ema")
    torch.testing.assert_close(
        autoencoder_in(loaded.model).encoder.conv_in.weight, second["ema"]["encoder.conv_in.weight"]
    )
    assert loaded.scale is None


def test_checkpoint_is_loaded_by_its_own_name_and_without_ema_by_its_model(tmp_path: Path) -> None:
    first = save(tmp_path, 1, ema=False)
    save(tmp_path, 2)
    loaded = load_model(tmp_path / "checkpoints" / "step_00000001")
    assert (loaded.source.step, loaded.source.weights, loaded.source.folder) == (1, "model", tmp_path)
    torch.testing.assert_close(
        autoencoder_in(loaded.model).encoder.conv_in.weight, first["model"]["encoder.conv_in.weight"]
    )


def test_resolution_is_read_from_the_recipe(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "recipe.yaml").write_text("data: {image: {resize: 96, crop: 64}}\n")
    assert load_model(tmp_path).source.resolution == 64


def test_statistics_of_other_weights_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    moments = LatentMoments(4)
    moments.update(2.0 * torch.randn(8, 4, 16, 16))
    digest = weights_hash(load_model(tmp_path).model)
    rest = {"latents": "mode", "protocol": {}, "data": "shards"}
    LatentStatistics.of(moments, codec=digest, **rest).write(tmp_path / STATISTICS)
    assert load_model(tmp_path).scale == LatentScale(1 / moments.total_std)
    save(tmp_path, 2)
    assert load_model(tmp_path).scale is None
    assert "about other weights" in caplog.text


def test_live_model_shares_its_tensors_and_stays_as_it_is(vae: AutoencoderKL) -> None:
    vae.encoder.requires_grad_(True)
    loaded = load_model(vae)
    assert loaded.scale == LatentScale(0.5)
    assert autoencoder_in(loaded.model).encoder.conv_in.weight.data_ptr() == vae.encoder.conv_in.weight.data_ptr()
    assert not autoencoder_in(loaded.model).encoder.conv_in.weight.requires_grad
    assert vae.encoder.conv_in.weight.requires_grad
    with torch.no_grad():
        vae.encoder.conv_in.weight.zero_()
    assert not autoencoder_in(loaded.model).encoder.conv_in.weight.any()


def test_hash_tells_weights_apart_and_ignores_where_they_lie(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    live, saved = load_model(vae).model, load_model(tmp_path).model
    assert weights_hash(live) == weights_hash(saved)
    before = weights_hash(live)
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 1e-6
    assert weights_hash(live) != before


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("no/such/model", "not found"),
        ("empty", "holds no model"),
        ("young", "no whole checkpoint"),
        ("file", "no folder"),
    ],
)
def test_what_is_no_model_is_refused(ref: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / ref)


def test_hub_that_is_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="and the Hub does not give it") as error:
        load_model("nobody-we-know/no-such-model")
    assert "\n" not in str(error.value)


def test_live_object_of_another_class_is_refused() -> None:
    with pytest.raises(UserError, match="from a Linear"):
        load_model(torch.nn.Linear(1, 1))


def test_a_checkpoint_that_the_trainer_deletes_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1)
    checkpoints = tmp_path / "run" / "checkpoints"

    def save(step: int) -> Path:
        state = {"model": Autoencoder(config).state_dict()}
        meta = {"step": step, "model": config.model_dump(mode="json")}
        return Checkpoint.write(checkpoints / f"step_{step:08d}", state, meta).folder

    old, read = save(1), Checkpoint.tensors
    seen: list[int] = []

    def tensors(self: Checkpoint, name: str) -> dict[str, torch.Tensor]:
        if not seen:  # the trainer goes on between the choice of a checkpoint and its reading
            save(2)
            remove_folder(old)
        seen.append(self.step)
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "tensors", tensors)
    assert load_model(tmp_path / "run").source.step == 2
    assert seen == [1, 2]
