"""The whole inspection of a real network, of few and of broken images, and of what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.diagnostics.findings import Inspection, Section
from ldm_vae.diagnostics.inspect import InspectionJob, inspect_codec
from ldm_vae.diagnostics.survey import POSITIONS_SAMPLED, survey_images
from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import picture, write_shards
from tests.diagnostics.conftest import averaging
from tests.diagnostics.values import value
from tests.kl import autoencoder_in

SECTIONS = [
    "reconstruction", "images", "channels", "aggregate_posterior", "spectrum", "blur", "equivariance", "smoothness",
    "robustness", "activations", "explore", "anomaly",
]  # fmt: skip
IMAGE = ImageConfig()


def network(channels: int = 3) -> LatentCodec:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1, norm_groups=4
    )
    return LatentCodec(Autoencoder(config).eval().requires_grad_(False), LatentScale(0.5))


def folder_of(path: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> str:
    """A folder of pictures of these sizes (width, height), instead of shards."""
    path.mkdir()
    for i, size in enumerate(sizes):
        picture(i, size).convert(mode).save(path / f"{i}.png")
    return str(path)


def sections(inspection: Inspection) -> dict[str, Section]:
    return {section.name: section for section in inspection.sections}


def missing(inspection: Inspection) -> dict[str, str]:
    return {n.name: n.missing for section in inspection.sections for n in section.numbers if n.value is None}


def test_everything_is_found_written_and_read_again(shards: Path, tmp_path: Path) -> None:
    job = InspectionJob(str(shards / "train"), IMAGE, images=12, against=str(shards / "validation"), batch=4)
    done: list[tuple[str, int, int]] = []
    inspection = inspect_codec(network(), job, tmp_path / "out", model={"model": "m"}, done=lambda *d: done.append(d))
    assert Inspection.read(tmp_path / "out") == inspection
    assert list(sections(inspection)) == SECTIONS
    assert missing(inspection) == {}
    parts = list(dict.fromkeys(part for part, _, _ in done))
    assert parts[:4] == ["fitting PCA", "reconstructing", "second set", "SSIM and LPIPS"] and len(parts) == 9
    for part in parts:  # each is announced before its first image, and ends with its last
        steps = [(count, total) for name, count, total in done if name == part]
        assert steps[0][0] == 0 and sum(count for count, _ in steps) == steps[-1][1] > 0
    assert ("reconstructing", 0, 12) in done and ("second set", 0, 5) in done
    assert done.count(("equivariance", 12, 60)) == 5 and done.count(("noise and storage", 12, 96)) == 8
    assert inspection.protocol["model"] == "m"
    assert inspection.protocol["images"] == 12
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".png", ".csv"}
    scatter = sections(inspection)["explore"].charts[0]
    assert sum(len(line.x) for line in scatter.lines) == 12
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 18
    for section in inspection.sections:
        for finding in (*section.numbers, *section.charts, *section.matrices, *section.pictures):
            assert finding.definition
        assert all(verdict.advice for verdict in section.verdicts if verdict.level in ("warning", "bad"))
        names = [f.name for f in (*section.numbers, *section.charts, *section.matrices, *section.pictures)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("bottleneck", ["gaussian", "deterministic", "rounded"])
def test_any_network_and_bottleneck(
    bottleneck: str, patches: Callable[[str], LatentCodec], shards: Path, tmp_path: Path
) -> None:
    """What cannot be measured says why; all else is measured."""
    job = InspectionJob(str(shards / "train"), IMAGE, against=str(shards / "validation"))
    inspection = inspect_codec(patches(bottleneck), job, tmp_path / "out", model={})
    found = sections(inspection)
    assert list(found) == SECTIONS
    reason = f"a bottleneck of kind {bottleneck} has no Gaussian posterior"
    said = [name for name, section in found.items() if any(reason in v.statement for v in section.verdicts)]
    assert said == ([] if bottleneck == "gaussian" else ["channels", "aggregate_posterior"])
    assert set(missing(inspection)) == (set() if bottleneck == "gaussian" else {"negative_elbo"})
    for word in ("N(0, I)", "gaussian_kl"):
        assert (word in inspection.model_dump_json()) == (bottleneck == "gaussian")
    assert bottleneck == "gaussian" or not any("loss.rate" in verdict.advice for verdict in inspection.verdicts)
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert all(bool(row["kl_nats"]) == (bottleneck == "gaussian") for row in rows)
    assert found["activations"].charts[0].lines[0].x == ("analysis", "synthesis")


def test_the_seed_decides_all_and_batches_decide_nothing(shards: Path, tmp_path: Path) -> None:
    found = []
    for name, batch, seed in (("a", 4, 0), ("b", 4, 0), ("c", 3, 0), ("d", 4, 1)):
        job = InspectionJob(str(shards / "train"), IMAGE, images=9, batch=batch, seed=seed)
        found.append(inspect_codec(network(), job, tmp_path / name, model={}))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    numbers = [{n.name: n.value for section in one.sections for n in section.numbers} for one in found]
    for name, expected in numbers[0].items():
        # convolutions of other batch sizes may sum in another order
        if expected is not None:
            assert numbers[2][name] == pytest.approx(expected, rel=1e-3, abs=1e-6), name
    assert numbers[3]["kl"] != numbers[0]["kl"]  # other images


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_channels(tmp_path: Path, channels: int, mode: str) -> None:
    shards = folder_of(tmp_path / "in", [(40, 40), (52, 36), (40, 64)], mode)
    image = ImageConfig(channels=channels)
    inspection = inspect_codec(network(channels), InspectionJob(shards, image), tmp_path / "out", model={})
    assert value(sections(inspection)["images"], "images") == 3
    assert bool(sections(inspection)["explore"].pictures) == (channels == 1)
    refused = InspectionJob(folder_of(tmp_path / "rgb", [(40, 40)]), ImageConfig(channels=5))
    with pytest.raises(UserError, match=r"no image of .* could be encoded: 1 are broken"):
        inspect_codec(network(5), refused, tmp_path / "refused", model={})
    assert not (tmp_path / "refused").exists()


def test_one_small_image(tmp_path: Path) -> None:
    job = InspectionJob(folder_of(tmp_path / "in", [(7, 6)]), IMAGE)
    inspection = inspect_codec(network(), job, tmp_path / "out", model={})
    assert "1 images" not in inspection.model_dump_json()
    reasons = missing(inspection)
    assert {"kolmogorov_smirnov_raw", "heat", "resolution_loss", "auc_error"} <= set(reasons)
    assert all(reasons.values())
    for name in ("equivariance", "smoothness", "robustness", "activations", "explore"):
        assert sections(inspection)[name].verdicts[0].level == "unknown"
    assert value(sections(inspection)["channels"], "kl") is not None


def spoil_white(codec: LatentCodec) -> None:
    """White pictures overflow in the encoder."""

    def overflow(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output[inputs[0].mean(dim=(1, 2, 3)) > 0.99] = torch.inf

    autoencoder_in(codec.model).encoder.conv_in.register_forward_hook(overflow)


def test_broken_images_are_counted_and_left_out(tmp_path: Path) -> None:
    shards = folder_of(tmp_path / "in", [(40, 40)] * 4)
    Image.new("RGB", (40, 40), "white").save(Path(shards) / "white.png")
    (Path(shards) / "torn.png").write_bytes(b"no picture")
    codec = network()
    spoil_white(codec)
    inspection = inspect_codec(codec, InspectionJob(shards, IMAGE), tmp_path / "out", model={})
    images = sections(inspection)["images"]
    counts = {name: value(images, name) for name in ("images", "unreadable", "broken_posteriors")}
    assert counts == {"images": 5, "unreadable": 1, "broken_posteriors": 1}
    assert images.verdicts[0].level == "bad"
    assert "white" in images.verdicts[0].statement
    assert inspection.protocol["left_out"] == 2
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 5


def test_a_decoder_of_nan_leaves_the_latents(tmp_path: Path) -> None:
    """Everything about reconstructions is missing with the reason, and the rest is there."""
    codec = network()
    model = autoencoder_in(codec.model)
    assert model.decoder.conv_out.bias is not None and model.encoder.conv_in.bias is not None
    model.decoder.conv_out.bias.fill_(torch.nan)
    shards = folder_of(tmp_path / "in", [(40, 40)] * 3)
    inspection = inspect_codec(codec, InspectionJob(shards, IMAGE), tmp_path / "out", model={})
    assert value(sections(inspection)["images"], "broken_reconstructions") == 3
    assert value(sections(inspection)["channels"], "kl") is not None
    assert {"resolution_loss", "auc_error"} <= set(missing(inspection))
    assert sections(inspection)["robustness"].verdicts[0].level == "unknown"
    assert not (tmp_path / "out" / "scores.csv").exists()
    model.encoder.conv_in.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"no image of .* could be encoded: 3 are broken or give no finite latent"):
        inspect_codec(codec, InspectionJob(shards, IMAGE), tmp_path / "out", model={})
    assert Inspection.read(tmp_path / "out") == inspection  # the older one stays


def test_a_collapsed_codec_is_called_so(tmp_path: Path) -> None:
    job = InspectionJob(folder_of(tmp_path / "in", [(64, 64)] * 3), IMAGE)
    inspection = inspect_codec(averaging(gains=[1.0, 0.0, 1.0]), job, tmp_path / "out", model={})
    levels = {verdict.name: verdict.level for verdict in inspection.verdicts}
    assert levels["collapsed_channels"] == "warning"
    assert levels["equivariance_turns"] == "good"
    shares = next(c for c in sections(inspection)["spectrum"].charts if c.name == "high_share_per_channel")
    assert shares.lines[0].y[1] is None  # no power, no share


def test_refusals(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    job = InspectionJob(str(shards / "validation"), IMAGE)
    with pytest.raises(UserError, match=r"holds thesis\.txt, which would be lost"):
        inspect_codec(network(), job, tmp_path / "mine", model={})
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no shards and no images"):
        inspect_codec(network(), InspectionJob(str(tmp_path / "empty"), IMAGE), tmp_path / "out", model={})
    config = AutoencoderConfig(in_channels=1, out_channels=3, block_out_channels=(8, 8), norm_groups=4)
    uneven = LatentCodec(Autoencoder(config).eval())
    with pytest.raises(UserError, match="from 1 to 3 channels"):
        inspect_codec(uneven, job, tmp_path / "out", model={})
    assert not (tmp_path / "out").exists()


def test_an_older_inspection_is_replaced(shards: Path, tmp_path: Path) -> None:
    job = InspectionJob(str(shards / "validation"), IMAGE)
    inspect_codec(network(), job, tmp_path / "out", model={"model": "first"})
    inspect_codec(network(), job, tmp_path / "out", model={"model": "second"})
    assert json.loads((tmp_path / "out" / "inspection.json").read_text())["protocol"]["model"] == "second"


def test_what_is_kept_does_not_grow_with_the_images(tmp_path: Path) -> None:
    from ldm_vae.data.shards.index import SourceConfig, load_index
    from ldm_vae.data.stream.reader import DataConfig, validation_batches

    write_shards(tmp_path / "many", [60])
    config = DataConfig(train=(SourceConfig(shards=str(tmp_path / "many")),), batch=4, workers=0)
    batches = validation_batches(config, load_index(str(tmp_path / "many")), batch=4, rank=0, world=1)
    kept = survey_images(network(), batches, seed=0)
    kept_rows = (len(kept.positions), len(kept.probes), len(kept.views), len(kept.labelled))
    assert kept_rows == (POSITIONS_SAMPLED, 16, 2, 60)
    assert kept.positions.rows is not None
    assert len(np.unique(kept.positions.rows, axis=0)) > 0.99 * POSITIONS_SAMPLED  # not one image over and over
