"""`ldm-vae evaluate` as called from the command line: several codecs and baselines, on one process and on two."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.deterministic import DeterministicConfig
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.cli.app import main
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import evaluate_shards
from ldm_vae.evaluation.results import EvaluationProtocol
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.results import Measurement, StoredResults
from ldm_vae.metrics import sets
from ldm_vae.networks.kl import Autoencoder
from tests.cli.conftest import CONFIG

PSNR = ("--metrics", "psnr")


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, arguments)])
    return int(stop.value.code or 0)


def results(path: Path, *arguments: object) -> dict[str, Any]:
    assert command(*arguments, "--json", path) == 0
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another codec for the same images."""
    torch.manual_seed(5)
    states = {"model": Autoencoder(CONFIG).state_dict(), "ema": Autoencoder(CONFIG).state_dict()}
    meta = {"step": 9, "model": CONFIG.model_dump(mode="json")}
    Checkpoint.write(tmp_path / "other" / "checkpoints" / "step_00000009", states, meta)
    return tmp_path / "other"


def test_a_sample_of_a_codec_without_a_posterior_is_refused_before_anything_is_measured(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.model_copy(update={"bottleneck": DeterministicConfig()})
    states = {"model": Autoencoder(config).state_dict()}
    meta = {"step": 1, "model": config.model_dump(mode="json")}
    Checkpoint.write(tmp_path / "plain" / "checkpoints" / "step_00000001", states, meta)
    monkeypatch.setattr("ldm_vae.evaluation.evaluate.Metrics", None)
    assert command(run, tmp_path / "plain", shards, "--latent", "sample", *PSNR) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "plain has a deterministic bottleneck and no posterior to sample from" in told


def test_codecs_and_baselines_on_the_same_images(
    run: Path,
    other: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    baselines = ("--baseline", f"pca={shards}", "--baseline", "jpeg")
    found = results(tmp_path / "results.json", run, other, shards, *baselines, *PSNR)
    printed = capsys.readouterr().out
    assert [(entry["name"], entry["kind"]) for entry in found["others"]] == [
        (str(other), "model"),
        ("pca", "baseline"),
        ("jpeg", "baseline"),
    ]
    protocol = EvaluationProtocol(metrics=("psnr",))
    for folder, entry in ((run, found), (other, found["others"][0])):
        codec = LatentCodec.load(folder, device="cpu")
        codec.scale = LatentScale()
        alone = evaluate_shards(codec, str(shards), protocol)
        assert entry["metrics"] == alone.metrics
        assert entry["per_image"] == [row.to_json() for row in alone.per_image]
        assert entry["protocol"]["weights_sha256"] == codec.weights_hash
    keys = [row["key"] for row in found["per_image"]]
    assert keys == sorted(keys) and len(keys) == 11
    assert found["per_image"][0].keys() == {"key", "height", "width", "values", "missing"}
    assert found["protocol"]["weights"] == "ema" and found["protocol"]["step"] == 7
    for entry, comparison in zip(found["others"], found["comparisons"], strict=True):
        assert comparison["name"] == entry["name"]
        assert [row["key"] for row in entry["per_image"]] == keys
        difference = comparison["metrics"]["psnr"]
        assert difference["difference"] == pytest.approx(found["metrics"]["psnr"] - entry["metrics"]["psnr"])
        assert difference["low"] < difference["difference"] < difference["high"]
    assert "bytes per pixel" in found["others"][2]["protocol"]["latent"]
    assert "11 images" in found["others"][1]["protocol"]["codec"]
    for word in ("jpeg", "pca", "too few images to tell: ", f"{run} and {other}, image by image", "11 images of"):
        assert word in printed
    assert printed.rindex("too few images") > printed.rindex("all of it:") > printed.index("PSNR (dB) ↑")


def test_one_codec_alone_has_no_others(run: Path, shards: Path, tmp_path: Path) -> None:
    assert results(tmp_path / "r.json", run, shards, *PSNR).keys() == {
        "metrics",
        "missing",
        "notes",
        "protocol",
        "per_image",
    }


def test_each_run_keeps_its_own_results(
    run: Path, other: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file is about its run, whatever stood first; --json into one of them adds nothing, and none is another's."""
    found = results(tmp_path / "all.json", run, other, shards, *PSNR, "--baseline", "jpeg")
    assert f"all of it: {run}/results.json, {other}/results.json, {tmp_path}/all.json" in unwrapped(capsys)
    kept = {folder: StoredResults.read(folder / "results.json") for folder in (run, other)}
    for folder, stored in kept.items():
        assert stored.ours and stored.entries == []
        assert stored.weights == LatentCodec.load(folder, device="cpu").weights_hash
    assert kept[run].metrics == found["metrics"] and kept[other].metrics == found["others"][0]["metrics"]
    assert [other.name for other in kept[other].others] == [str(run), "jpeg"]  # of one rate, so the baseline fits both
    ours, theirs = (kept[folder].comparisons[0].metrics["psnr"] for folder in (run, other))
    assert (ours.difference, ours.low, ours.high) == (-theirs.difference, -theirs.high, -theirs.low)  # type: ignore[operator]

    text = (other / "results.json").read_text()
    assert command(run, shards, *PSNR, "--json", other / "results.json") == 2
    assert "keeps the measurements of another run: give another name to --json" in capsys.readouterr().err
    assert (other / "results.json").read_text() == text
    again = results(run / "results.json", run, shards, *PSNR)
    assert again["metrics"] == found["metrics"] and again["per_image"] == found["per_image"]
    assert [one["name"] for one in again["others"]] == ["jpeg"]  # what was not measured again stays


def test_measurements_are_known_by_weights_data_and_protocol(run: Path, shards: Path, tmp_path: Path) -> None:
    """The copies of shards are the same data; another crop, metric, sample or checkpoint is told apart or added."""
    copy = shutil.copytree(shards, tmp_path / "elsewhere")

    def entries() -> list[Measurement]:
        return StoredResults.read(run / "results.json").measurements

    assert command(run, shards, "--metrics", "psnr") == 0
    assert command(run, copy, "--metrics", "ssim") == 0
    (only,) = entries()
    assert set(only.metrics) == {"psnr", "psnr_pooled", "ssim"} and only.protocol["shards"] == str(copy)
    assert set(only.per_image[0].values) | set(only.per_image[0].missing) == {"psnr", "ssim"}
    assert command(run, shards, *PSNR, "--crop", "center:12") == 0
    assert command(run, shards, *PSNR, "--latent", "sample") == 0
    assert command(run, shards, *PSNR, "--latent", "sample") == 0
    assert [(one.protocol["crop"], one.protocol["latent"][:6]) for one in entries()] == [
        ("none", "sample"),
        ("center 12", "mode"),
        ("none", "mode"),
    ]
    torch.manual_seed(3)
    states = {"model": Autoencoder(CONFIG).state_dict(), "ema": Autoencoder(CONFIG).state_dict()}
    Checkpoint.write(
        run / "checkpoints" / "step_00000009", states, {"step": 9, "model": CONFIG.model_dump(mode="json")}
    )
    assert command(run, shards, *PSNR) == 0
    assert [one.step for one in entries()] == [9, 7, 7, 7]
    assert command(run / "checkpoints" / "step_00000007", shards, *PSNR) == 0
    assert [one.step for one in entries()] == [7, 9, 7, 7]  # the old checkpoint's measurement, anew


def test_a_damaged_file_is_told_before_anything_is_measured_and_stays(
    run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ldm_vae.evaluation.evaluate.Metrics", None)
    for content in ("{", '{"per_image": 3}', '{"format": "a.b", "metrics": {}}', '{"version": 2}'):
        (run / "results.json").write_text(content)
        assert command(run, shards, *PSNR) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "results.json" in told and (": move it" in told or "update" in told)
        assert (run / "results.json").read_text() == content


def test_only_runs_that_may_be_written_keep_results(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = LatentCodec.load(run, device="cpu")
    codec.scale = LatentScale()
    codec.as_diffusers().save_pretrained(tmp_path / "export")
    before = sorted((tmp_path / "export").iterdir())
    assert command(tmp_path / "export", shards, *PSNR) == 0
    assert sorted((tmp_path / "export").iterdir()) == before
    assert "--json FILE writes all of it" in unwrapped(capsys)
    assert command(run, shards, *PSNR) == 0
    text = (run / "results.json").read_text()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as of a file without the right to write
    capsys.readouterr()
    assert command(run, shards, *PSNR, "--crop", "center:12") == 0
    assert f"{run}/results.json will not be written: the file is read-only" in capsys.readouterr().err
    assert (run / "results.json").read_text() == text
    monkeypatch.undo()
    monkeypatch.setattr(Path, "touch", read_only)
    assert command(run, shards, *PSNR, "--crop", "center:12") == 0
    told = capsys.readouterr()
    assert "will not be written: its folder cannot be written (Read-only file system)" in told.err
    assert "PSNR (dB)" in told.out and (run / "results.json").read_text() == text


def read_only(path: Path, **_: Any) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def unwrapped(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_two_processes_measure_what_one_does(run: Path, shards: Path, tmp_path: Path) -> None:
    """The files of JPEG are counted over all of them, too. Codecs sum in another order in batches: 1e-4 dB."""
    arguments = [run, shards, "--baseline", "jpeg", *PSNR]
    alone = results(tmp_path / "one.json", *arguments)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ldm_vae"]
    words = [*launch, "evaluate", *map(str, arguments), "--json", str(tmp_path / "two.json")]
    subprocess.run(words, check=True, capture_output=True)
    both = json.loads((tmp_path / "two.json").read_text())
    assert both["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
    assert both["protocol"] == alone["protocol"]
    assert both["others"] == alone["others"]


def test_sample_and_precision_are_in_the_protocol(run: Path, shards: Path, tmp_path: Path) -> None:
    plain = results(tmp_path / "plain.json", run, shards, *PSNR)
    sample = results(
        tmp_path / "sample.json", run, shards, *PSNR, "--latent", "sample", "--seed", 3, "--baseline", "jpeg"
    )
    half = results(tmp_path / "half.json", run, shards, *PSNR, "--precision", "bf16")
    assert plain["protocol"]["latent"] == "mode" and plain["protocol"]["precision"] == "float32"
    assert "seed 3" in sample["protocol"]["latent"]
    assert "seed" not in sample["others"][0]["protocol"]["latent"]  # a file is no sample
    assert half["protocol"]["precision"] == "bfloat16"
    assert half["protocol"]["weights_sha256"] == plain["protocol"]["weights_sha256"]
    values = [found["metrics"]["psnr"] for found in (plain, sample, half)]
    assert len(set(values)) == 3
    assert values[2] == pytest.approx(values[0], abs=0.5)


@pytest.mark.slow  # LPIPS at 256 x 256
def test_a_published_protocol_fixes_what_its_script_does(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sets, "inception", absent_inception)
    found = results(tmp_path / "r.json", run, shards, "--protocol", "seed", "--baseline", "jpeg")
    assert set(found["metrics"]) == {"psnr", "psnr_pooled", "ssim_uniform", "lpips_vgg", "lpips_alex", "rfid_pytorch"}
    for entry in (found, *found["others"]):
        protocol = entry["protocol"]
        assert protocol["protocol"] == "seed" and protocol["crop"] == "center 256"
        assert protocol["resize"].startswith("short side 256, bilinear, antialias, rounded to 8 bits")
        assert "psnr truncated" in protocol["rounding"] and "lpips_vgg clamped" in protocol["rounding"]
        assert "psnr" in entry["metrics"] and entry["metrics"]["lpips_vgg"] is not None
    sampled = results(tmp_path / "s.json", run, shards, "--protocol", "vavae", "--seed", 4)
    assert sampled["protocol"]["latent"] == "sample, noise from seed 4 and key"
    assert results(tmp_path / "t.json", run, shards, *PSNR)["protocol"]["protocol"] == "ldm_vae"
    for option, value in (
        ("--resize", "short:128"),
        ("--crop", "center:8"),
        ("--metrics", "psnr"),
        ("--latent", "mode"),
    ):
        assert command(run, shards, "--protocol", "titok", option, value) == 2
        assert f"leave out {option}" in capsys.readouterr().err


def absent_inception(file: Path | None) -> Any:
    raise UserError("no weights of Inception", "give a file")


def test_a_published_protocol_decodes_the_latent_of_a_codec_without_a_posterior(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "inception", absent_inception)
    config = CONFIG.model_copy(update={"bottleneck": DeterministicConfig()})
    meta = {"step": 1, "model": config.model_dump(mode="json")}
    Checkpoint.write(
        tmp_path / "run" / "checkpoints" / "step_00000001", {"model": Autoencoder(config).state_dict()}, meta
    )
    found = results(tmp_path / "r.json", tmp_path / "run", shards, "--protocol", "ldm")
    assert found["protocol"]["latent"] == "mode" and found["metrics"]["psnr"] is not None


def test_the_filter_of_the_resize_is_chosen_and_stated(run: Path, shards: Path, tmp_path: Path) -> None:
    found = {}
    for option in ("short:24", "short:24:bicubic", "short:24:bilinear", "short:24:bilinear_aliased"):
        one = results(tmp_path / "r.json", run, shards, *PSNR, "--resize", option)
        found[option] = one["metrics"]["psnr"], one["protocol"]["resize"]
    assert found["short:24"] == found["short:24:bicubic"]
    assert len({value for value, _ in found.values()}) == 3
    assert found["short:24:bilinear"][1] == "short side 24, bilinear, antialias"
    assert found["short:24:bilinear_aliased"][1] == "short side 24, bilinear_aliased"


def test_without_inception_weights_one_line_says_so(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, nobody)
    monkeypatch.setenv("LDM_VAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    found = results(tmp_path / "r.json", run, shards, "--metrics", "psnr,rfid,kid", "--baseline", "jpeg")
    assert found["metrics"]["psnr"] is not None
    assert found["metrics"]["rfid"] is None and found["metrics"]["kid"] is None
    assert "can't be fetched" in found["missing"]["rfid"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "can't be fetched" in line]
    assert len(lines) == 1
    assert lines[0].startswith("missing rFID; KID: ")


def test_bad_input_is_one_line(run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = CONFIG.model_copy(update={"in_channels": 1, "out_channels": 1})
    states = {"model": Autoencoder(grey).state_dict(), "ema": Autoencoder(grey).state_dict()}
    meta = {"step": 1, "model": grey.model_dump(mode="json")}
    Checkpoint.write(tmp_path / "grey" / "checkpoints" / "step_00000001", states, meta)
    lossy = CONFIG.model_copy(update={"out_channels": 1})
    states = {"model": Autoencoder(lossy).state_dict(), "ema": Autoencoder(lossy).state_dict()}
    meta = {"step": 1, "model": lossy.model_dump(mode="json")}
    Checkpoint.write(tmp_path / "lossy" / "checkpoints" / "step_00000001", states, meta)
    weights = tmp_path / "weights.pth"
    torch.save({}, weights)
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    for shard in broken.glob("*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"XDAT"))
    for arguments, message in (
        ((run, tmp_path / "grey", shards), "different channels: 3 ("),
        ((run, run, shards), "is named twice"),
        ((tmp_path / "lossy", shards, *PSNR), "a codec from 3 to 1 channels"),
        ((run, shards, "--metrics", "psnr,fid"), "there is no 'fid'"),
        ((run, shards, "--baseline", "png"), "choose pca"),
        ((run, shards, "--inception", weights), f"Inception weights {weights}"),
        ((run, tmp_path / "nowhere"), "nowhere"),
        ((run, broken, *PSNR), "has no image for this codec and protocol"),
        ((run, shards, "--latent", "mean"), "mean"),
        ((run, shards, "--resize", "short:24:nearest"), "there is no filter 'nearest'"),
        ((run, shards, "--resize", "bilinear:24"), "write short:N"),
    ):
        assert command(*arguments, "--json", tmp_path / "never.json") == 2, arguments
        assert message in capsys.readouterr().err, arguments
    assert not (tmp_path / "never.json").exists()
    assert command(run, shards, *PSNR, "--json", tmp_path) == 2  # a folder, told before anything is measured
