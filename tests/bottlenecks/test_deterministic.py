"""A codec without a posterior: exported to diffusers, encoded and inspected like any other, as far as it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from ldm_vae import LatentCodec, LatentDataset, UserError
from ldm_vae.bottlenecks.deterministic import DeterministicConfig
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.cli.commands import command
from tests.tolerance import assert_as_exact, double


@pytest.fixture(params=[True, False], ids=["quant_conv", "no quant_conv"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        block_out_channels=(8, 16), norm_groups=4, layers_per_block=1, bottleneck=DeterministicConfig(),
        quant_conv=request.param, post_quant_conv=request.param,
    )  # fmt: skip
    model = Autoencoder(config)
    folder = tmp_path / "run"
    meta = {"step": 1, "model": config.model_dump(mode="json")}
    Checkpoint.write(folder / "checkpoints" / "step_00000001", {"model": model.state_dict()}, meta)
    return folder


def test_every_command(run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = shards / "validation", tmp_path / "out"
    codec = LatentCodec.load(run, device="cpu")
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    assert codec.moments(images).shape == (2, 4, 8, 12)  # one output a latent channel
    for call in (codec.encode, codec.reconstruct):
        with pytest.raises(UserError, match="has a deterministic bottleneck and no posterior to sample from"):
            call(images, sample=True)

    assert command("stats", run, data, "--write") == 0
    assert command("export", run, out / "export") == 0
    theirs = AutoencoderKL.from_pretrained(out / "export")
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        exact = double(codec.model)
        assert isinstance(exact, Autoencoder)
        latent = codec.moments(images)
        assert_as_exact(posterior.mode(), latent, exact.encode(images.double()))
        assert (posterior.logvar == -30).all()
        decoded = codec.decode_raw(latent)
        assert_as_exact(theirs.decode(latent).sample, decoded, exact.decode(latent.double()))
    assert LatentCodec.load(out / "export", device="cpu").weights_hash == codec.weights_hash  # its latents stay its own

    capsys.readouterr()
    results = out / "results.json"
    assert command("evaluate", run, data, "--latent", "sample", "--metrics", "psnr", "--json", results) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "no posterior to sample from: take its mode (--latent mode)" in told.err
    assert not results.exists() and not told.out
    assert command("evaluate", run, data, "--metrics", "psnr", "--json", results) == 0

    for asked in ("moments", "sample"):  # moments are the default
        given = () if asked == "moments" else ("--latents", asked)
        assert command("encode", run, data, out / "latents", *given) == 2
        assert f"deterministic bottleneck has no {asked}: store its latents with --latents mode" in (
            capsys.readouterr().err
        )
    assert command("encode", run, data, out / "latents", "--latents", "mode") == 0
    job = json.loads((out / "latents" / "latents.json").read_text())["job"]
    assert job["logvar_range"] is None
    assert len(LatentDataset(out / "latents", codec=codec)) == 5
    assert command("encode", run, data, out / "latents", "--latents", "mode") == 0  # the same job: nothing is left
    assert command("roundtrip", run, out / "latents", data) == 0
    assert command("inspect", run, data, "--output", out / "inspection") == 0
    sections = json.loads((out / "inspection" / "inspection.json").read_text())["sections"]
    said = {section["name"]: section for section in sections}
    for name in ("channels", "aggregate_posterior"):
        (verdict,) = said[name]["verdicts"]
        assert verdict["level"] == "unknown" and "no Gaussian posterior" in verdict["statement"]
    bound = next(number for number in said["anomaly"]["numbers"] if number["name"] == "negative_elbo")
    assert bound["value"] is None and "no Gaussian posterior" in bound["missing"]
    assert said["spectrum"]["numbers"] and said["blur"]["numbers"]
