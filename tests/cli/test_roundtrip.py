"""`ldm-vae roundtrip` against evaluation, and the 8 bits it tries."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.cli.app import main
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards import scan
from ldm_vae.data.shards.index import load_index
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import evaluate_shards
from ldm_vae.evaluation.results import EvaluationProtocol
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.roundtrip import evenly_spread, measure_roundtrip, round_to_bits
from tests.conftest import picture


def encode(run: Path, shards: Path, out: Path, *options: object) -> Path:
    with pytest.raises(SystemExit) as stop:
        main(["encode", str(run), str(shards), str(out), *map(str, options)])
    assert not stop.value.code
    return out


@pytest.mark.parametrize("options", [(), ("--crop", "center:12", "--batch", 3)])
def test_unstored_latents_score_as_in_evaluation_and_stored_ones_nearly(
    run: Path, shards: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = encode(run, shards, tmp_path / "out", *options)
    codec = LatentCodec.load(run, device="cpu")
    progress: list[int] = []
    found = measure_roundtrip(
        codec,
        LatentDataset(out, codec=codec),
        load_index(str(shards)),
        metrics=("psnr",),
        done=lambda count, total: progress.append(total),
    )
    assert progress == [11] * 12  # with the call before the first
    codec.scale = LatentScale()
    protocol = EvaluationProtocol(image=ImageConfig(crop=12 if options else None), metrics=("psnr",))
    expected = evaluate_shards(codec, str(shards), protocol, batch=1).metrics["psnr"]
    assert found["float32"].results.metrics["psnr"] == expected
    # Rounding a latent to 11 bits moves some pixels across a rounding to 8; to 8 bits, a few more.
    assert found["float16"].results.metrics["psnr"] == pytest.approx(expected, abs=0.01)
    assert found["8 bits"].results.metrics["psnr"] == pytest.approx(expected, abs=0.1)
    assert found["float32"].bytes == 2 * found["float16"].bytes
    assert found["8 bits"].bytes == found["float16"].bytes / 2 + 8 * 4


def test_command_writes_every_way_of_storing(run: Path, shards: Path, tmp_path: Path) -> None:
    out = encode(run, shards, tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        main(["roundtrip", str(run), str(out), str(shards), "--json", str(tmp_path / "numbers.json")])
    assert not stop.value.code
    content = json.loads((tmp_path / "numbers.json").read_text())
    assert list(content) == ["float32", "float16", "8 bits"]
    assert content["float16"]["metrics"]["psnr"] > 0
    assert content["float16"]["bytes_per_image"] > 0


def test_other_images_are_refused(run: Path, shards: Path, tmp_path: Path) -> None:
    out = encode(run, shards, tmp_path / "out")
    codec = LatentCodec.load(run, device="cpu")
    (shards / "000000.tar").unlink()
    with pytest.raises(UserError, match="not the images"):
        measure_roundtrip(codec, LatentDataset(out), load_index(str(shards)), metrics=("psnr",), done=lambda *_: None)


def folder_of_images(folder: Path, names: list[str], seed: int = 0) -> Path:
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed + number, (24, 16 + 4 * (number % 2))).save(path)
    return folder


def roundtrip(run: Path, latents: Path, images: Path, *options: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["roundtrip", str(run), str(latents), str(images), *map(str, options)])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    "names", [["a", "b", "c", "d", "e"], ["cats/a", "cats/b", "dogs/a", "dogs/deep/a", "top"]], ids=["flat", "nested"]
)
@pytest.mark.parametrize(
    "options", [("--mirrored",), ("--latents", "mode", "--crop", "center:12"), ("--latents", "sample")]
)
def test_a_folder_of_images_as_encode_takes_it(
    run: Path, tmp_path: Path, names: list[str], options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "FOLDER_SHARD", 2)  # several latent shards of one folder
    images = folder_of_images(tmp_path / "images", names)
    (images / "torn.png").write_bytes(b"no picture")  # encode leaves it out
    out = encode(run, images, tmp_path / "out", *options)
    assert len(list(out.glob("*.tar"))) == 3
    codec = LatentCodec.load(run, device="cpu")
    latents = LatentDataset(out, codec=codec, scale=LatentScale())
    assert sorted(latents.key(i) for i in range(len(latents))) == sorted(names)
    found = measure_roundtrip(codec, latents, load_index(str(images)), metrics=("psnr",), done=lambda *_: None)
    codec.scale = LatentScale()
    protocol = EvaluationProtocol(image=ImageConfig(crop=12 if "--crop" in options else None), metrics=("psnr",))
    expected = evaluate_shards(codec, str(images), protocol, batch=1).metrics["psnr"]
    assert found["float32"].results.metrics["psnr"] == expected


def test_a_part_of_the_latents(run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evenly spread ones; and latents of one shard, beside all shards of images."""
    out = encode(run, shards, tmp_path / "out")
    part = encode(run, shards / "000001.tar", tmp_path / "part")
    capsys.readouterr()
    numbers = tmp_path / "numbers.json"
    for folder, count in ((out, 3), (part, 3), (part, 1)):
        assert roundtrip(run, folder, shards, "--images", count, "--json", numbers) == 0
        assert json.loads(numbers.read_text())["float16"]["protocol"]["images"] == count
    printed = capsys.readouterr().out
    assert "3 latents of 11 measured." in printed and "1 latent of 4 measured." in printed
    assert (
        "float16 takes 50% of the bytes and costs" in printed or "float16 takes 50% of the bytes and gains" in printed
    )
    assert max(map(len, printed.splitlines())) <= 80
    assert roundtrip(run, part, shards, "--images", 100, "--json", numbers) == 0
    assert json.loads(numbers.read_text())["float16"]["protocol"]["images"] == 4


@given(st.integers(1, 200), st.integers(1, 250))
def test_spread_evenly(count: int, limit: int) -> None:
    kept = evenly_spread(count, limit)
    assert len(kept) == min(count, limit) and kept[0] == 0 and kept[-1] < count
    gaps = {b - a for a, b in pairwise(kept)}
    assert all(gap >= 1 for gap in gaps) and max(gaps, default=0) - min(gaps, default=0) <= 1
    assert evenly_spread(count, None) == list(range(count))


@pytest.mark.parametrize("kind", ["moments", "mode", "sample"])
def test_other_images_of_the_same_names_and_sizes(
    run: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = (folder_of_images(tmp_path / f"set{seed}" / "x", ["a", "b"], seed) for seed in (0, 50))
    out = encode(run, first, tmp_path / "out", "--latents", kind)
    assert roundtrip(run, out, second, "--json", tmp_path / "numbers.json") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("ldm-vae: these are not the images of") and "a in x gives another latent" in error
    assert not (tmp_path / "numbers.json").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "a of 000000.tar is not among them"),
        (lambda path: path.write_bytes(b"no picture"), "a in x cannot be read now"),
        (lambda path: picture(0, (30, 30)).save(path), "a in x has another size"),
    ],
)
def test_images_that_changed(
    run: Path, tmp_path: Path, change: Callable[[Path], object], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    images = folder_of_images(tmp_path / "x", ["a", "b"])
    out = encode(run, images, tmp_path / "out")
    change(images / "a.png")
    assert roundtrip(run, out, images) == 2
    assert reason in capfd.readouterr().err.splitlines()[-1]


@given(st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, 1e-6, 1.0, 1e3]), st.integers(0, 99))
def test_8_bits_err_by_half_a_step_at_most(offset: float, spread: float, seed: int) -> None:
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * spread + offset
    step = (z.amax(dim=(2, 3)) - z.amin(dim=(2, 3))) / 255
    error = (round_to_bits(z, 8) - z).abs().amax(dim=(2, 3))
    # float32 has 24 bits for an offset on top of the 8
    assert (error <= step * 0.5 + 3e-7 * z.abs().amax()).all()
    assert all(len(channel.unique()) <= 256 for channel in round_to_bits(z, 8).flatten(0, 1))
