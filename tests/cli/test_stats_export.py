"""`ldm-vae stats` and `ldm-vae export`, as called from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.shards.storage import read_whole
from ldm_vae.interop.diffusers import write_folder
from ldm_vae.interop.layouts import kl as layout
from tests.cli.commands import command
from tests.kl import autoencoder_in
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical


def pictures(shards: Path) -> list[torch.Tensor]:
    found = []
    for shard in load_index(str(shards)).shards:
        for ordinal in range(shard.samples):
            offset, size = shard.fields(ordinal)["png"]
            data = read_whole(shard.url)[offset : offset + size]
            found.append(torch.from_numpy(decode_image(data, "png", 3))[None])
    return found


def test_statistics_equal_numpy_over_every_image_at_its_size(run: Path, shards: Path, tmp_path: Path) -> None:
    assert command("stats", run, shards, "--json", tmp_path / "stats.json", "--batch", 3) == 0
    content = json.loads((tmp_path / "stats.json").read_text())
    codec = LatentCodec.load(run, device="cpu")
    means = [codec.moments(image).chunk(2, dim=1)[0].double().numpy() for image in pictures(shards)]
    flat = np.concatenate([mean[0].reshape(4, -1) for mean in means], axis=1)
    assert content["images"] == 11
    assert content["values"] == flat.shape[1]
    # Batches of other sizes round differently in float32: 1e-5 is about 100 roundings of what the values vary by.
    np.testing.assert_allclose(content["channel_mean"], flat.mean(axis=1), rtol=0, atol=1e-5 * flat.std())
    np.testing.assert_allclose(content["channel_std"], flat.std(axis=1), rtol=0, atol=1e-5 * flat.std())
    assert content["std"] == pytest.approx(flat.std(), rel=1e-5)
    assert content["codec"] == codec.weights_hash
    assert not (run / "latent_statistics.json").exists()


def test_two_processes_measure_what_one_does(run: Path, shards: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert command("stats", run, shards, "--json", one, "--batch", 1) == 0
    # Processes of its own make: 11 images, so that the ranks have different numbers of them.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ldm_vae"]
    arguments = ["stats", str(run), str(shards), "--json", str(two), "--batch", "1", "--write"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("scaling factor") == 1  # one process speaks
    first, second = json.loads(one.read_text()), json.loads(two.read_text())
    assert (first["images"], first["values"], first["codec"]) == (second["images"], second["values"], second["codec"])
    assert first["activation"] == second["activation"]
    for name in ("mean", "std", "channel_mean", "channel_std"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-12, atol=1e-12)  # sums of float64
    assert json.loads((run / "latent_statistics.json").read_text()) == second


def test_resize_and_crop_are_applied_and_recorded(run: Path, shards: Path, tmp_path: Path) -> None:
    options = ("--resize", "short:12", "--crop", "center:8", "--json", tmp_path / "stats.json")
    assert command("stats", run, shards, *options) == 0
    content = json.loads((tmp_path / "stats.json").read_text())
    assert content["values"] == 11 * 2 * 2
    assert (content["protocol"]["resize"], content["protocol"]["crop"]) == (12, 8)


def test_written_statistics_scale_the_codec_and_the_export(run: Path, shards: Path, tmp_path: Path) -> None:
    assert command("stats", run, shards, "--write") == 0
    statistics = json.loads((run / "latent_statistics.json").read_text())
    assert command("export", run, tmp_path / "out", "--licence", "cc0-1.0") == 0
    theirs, report = AutoencoderKL.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.config.scaling_factor == pytest.approx(1 / statistics["std"])
    assert theirs.config.sample_size == 32  # 30 px of the recipe, rounded up to a multiple of f
    assert theirs.config.force_upcast is False
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "photographs" in card  # the recipe
    assert "ldm-vae" in card
    ours, exported = LatentCodec.load(run, device="cpu"), LatentCodec.load(tmp_path / "out", device="cpu")
    image = pictures(shards)[1]
    assert torch.equal(ours.encode(image), exported.encode(image))
    assert ours.weights_hash == exported.weights_hash
    padded = torch.nn.functional.pad(image, (0, 2, 0, 3), mode="reflect")
    factor, exact = theirs.config.scaling_factor, double(theirs)
    with torch.no_grad():
        latent = theirs.encode(padded).latent_dist.mode() * factor
        exact_latent = exact.encode(padded.double()).latent_dist.mode() * factor
        pixels, exact_pixels = (
            model.decode(z / factor).sample[:, :, :17, :30] for model, z in ((theirs, latent), (exact, latent.double()))
        )
    # The same weights in the same operations; attention alone sums in another order.
    assert_as_exact(ours.encode(image), latent, exact_latent)
    assert_as_exact(ours.decode(latent, size=(17, 30)), pixels, exact_pixels)


def test_measured_on_the_way_it_gives_a_factor_unless_another_kind_is_named(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    assert command("export", run, tmp_path / "out", "--shards", shards) == 0
    statistics = json.loads((tmp_path / "out" / "latent_statistics.json").read_text())
    config = AutoencoderKL.from_pretrained(tmp_path / "out").config
    assert config.scaling_factor == pytest.approx(1 / statistics["std"])
    assert config.shift_factor is config.latents_mean is config.latents_std is None


def test_the_card_has_the_evaluation_of_these_weights_and_the_command(
    run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("export", run, tmp_path / "out", "--shards", shards)
    results = {
        "metrics": {"psnr": 21.23456, "rfid": None, "frechet_vgg16": 3.0},
        "missing": {"rfid": "no weights"},
        "notes": {"frechet_vgg16": "unreliable below 2,048 images (3)"},
        "protocol": {"weights_sha256": LatentCodec.load(run, device="cpu").weights_hash, "crop": "none"},
    }
    (run / "results.json").write_text(json.dumps(results))
    assert command(*arguments) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "| psnr | 21.2346 |",
        "| rfid | missing |",
        "rfid: no weights",
        "frechet_vgg16: unreliable below 2,048 images (3)",
        ' "crop": "none"',
        f"ldm-vae export {run} {tmp_path / 'out'} --shards {shards}",
    ):
        assert f"\n{line}\n" in card
    assert "results.json" not in capfd.readouterr().err
    results["protocol"] = {"weights_sha256": "0" * 64}
    (run / "results.json").write_text(json.dumps(results))
    assert command(*arguments) == 0
    assert "psnr" not in (tmp_path / "out" / "README.md").read_text()
    assert "is about other weights and not in the card: evaluate again" in capfd.readouterr().err
    before = sorted(path.read_bytes() for path in (tmp_path / "out").iterdir())
    (run / "results.json").write_text("{")
    assert command(*arguments) == 2
    assert "results.json is damaged (" in capfd.readouterr().err
    assert sorted(path.read_bytes() for path in (tmp_path / "out").iterdir()) == before


@pytest.mark.parametrize("kind", ["shift", "channel"])
def test_measured_on_the_way_with_another_kind_of_scale(run: Path, shards: Path, tmp_path: Path, kind: str) -> None:
    assert command("export", run, tmp_path / "out", "--shards", shards, "--scale", kind) == 0
    codec = LatentCodec.load(tmp_path / "out", device="cpu")
    scaled = torch.cat([codec.encode(image).flatten(2) for image in pictures(shards)], dim=2)
    axes = (0, 2) if kind == "channel" else (0, 1, 2)
    mean, std = scaled.mean(dim=axes), scaled.std(dim=axes, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-4)


def test_activations_beyond_the_margin_ask_for_float32(run: Path, shards: Path, tmp_path: Path) -> None:
    model = autoencoder_in(LatentCodec.load(run, device="cpu").model)
    with torch.no_grad():
        model.decoder.conv_in.weight.mul_(1e6)  # normalised again right after
    written = layout.to_config(model.config, LatentScale(0.3), sample_size=32, force_upcast=False)
    write_folder(tmp_path / "hot", written, model.exported_state(), {})
    assert command("export", tmp_path / "hot", tmp_path / "out", "--shards", shards) == 0
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    statistics = json.loads((tmp_path / "out" / "latent_statistics.json").read_text())
    assert exported["force_upcast"] is True
    assert statistics["activation"]["largest"] > 65504 / 4
    assert statistics["activation"]["layer"].startswith("decoder.")


def test_diffusers_folder_keeps_its_scale_until_it_is_measured(run: Path, shards: Path, tmp_path: Path) -> None:
    assert command("export", run, tmp_path / "first", "--shards", shards, "--scale", "shift") == 0
    first = json.loads((tmp_path / "first" / "config.json").read_text())
    assert command("export", tmp_path / "first", tmp_path / "second") == 0
    assert json.loads((tmp_path / "second" / "config.json").read_text()) == first
    assert command("stats", tmp_path / "second", shards, "--write", "--crop", "center:8") == 0
    third = json.loads((tmp_path / "second" / "config.json").read_text())
    assert third["scaling_factor"] != first["scaling_factor"]
    assert third["shift_factor"] is not None
    AutoencoderKL.from_pretrained(tmp_path / "second")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "{run}", "{out}"), "nobody has measured the latents"),
        (("export", "{run}", "{out}", "--stats", "missing.json"), "missing.json cannot be read"),
        (("export", "{run}", "{out}", "--stats", "x", "--shards", "y"), "give one of them"),
        (("stats", "{run}", "{shards}", "--crop", "256"), "write center:N"),
        (("stats", "{run}", "{shards}", "--crop", "center:500"), "smaller than the crop"),
        (("stats", "nowhere", "{shards}"), "model nowhere not found"),
        (("stats", "{run}", "{run}"), "no shards and no images in"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    names = {"run": run, "shards": shards, "out": tmp_path / "out"}
    assert command(*(argument.format(**names) for argument in arguments)) == 2
    errors = capfd.readouterr().err
    assert message in errors
    assert errors.strip().splitlines()[-1].startswith("ldm-vae: ")
    assert not (tmp_path / "out").exists()
