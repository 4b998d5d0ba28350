"""What users meet: one line and exit code 2, finished shards stay whole, and a rerun does the rest."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ldm_vae import LatentCodec, LatentDataset, UserError
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.diffusers import write_folder
from ldm_vae.interop.layouts import kl as layout
from ldm_vae.latents import encode
from ldm_vae.latents.folder import open_job
from ldm_vae.latents.format import LatentJob, LatentsFile
from ldm_vae.networks.kl import Autoencoder
from tests.cli.commands import command, digests
from tests.cli.conftest import CONFIG, write_shard
from tests.conftest import encoded, members, npy, write_tar

Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """refused(command...): what it says, which is one line; its exit code is 2."""

    def run(*arguments: object) -> str:
        capfd.readouterr()
        assert command(*arguments) == 2
        error = capfd.readouterr().err
        assert error.startswith("ldm-vae: ") and error.count("\n") == 1, error
        return error

    return run


def export(folder: Path, seed: int, in_channels: int = 3) -> Path:
    """Another codec, as a diffusers folder."""
    torch.manual_seed(seed)
    model = Autoencoder(CONFIG.model_copy(update={"in_channels": in_channels, "out_channels": in_channels}))
    config = layout.to_config(model.config, LatentScale(), sample_size=32, force_upcast=False)
    write_folder(folder, config, model.exported_state(), {})
    return folder


def tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="rgb")
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    return encoded(Image.new("RGB", (width, height), (200, 30, 60)))


def test_another_codec_is_refused_by_every_command(run: Path, shards: Path, tmp_path: Path, refused: Refused) -> None:
    out, other = tmp_path / "out", export(tmp_path / "other", seed=5)
    assert command("encode", run, shards, out) == 0
    before = digests(out)
    assert "holds latents made with encoder" in refused("encode", other, shards, out)
    assert "of another codec" in refused("decode", other, out, tmp_path / "images")
    assert "of another codec" in refused("roundtrip", other, out, shards)
    with pytest.raises(UserError, match="of another codec"):
        LatentDataset(out, codec=LatentCodec.load(other, device="cpu"))
    assert digests(out) == before
    assert not (tmp_path / "images").exists()


BROKEN = {  # field, content, reason
    "channels": ("npy", npy(np.zeros((5, 8, 8), np.float32)), r"shape (5, 8, 8)"),
    "nan": ("npy", npy(np.full((3, 8, 8), np.nan, np.float32)), "floats from nan to nan: they must be finite"),
    "nan_tiff": ("tiff", tiff(np.full((8, 8, 3), np.nan, np.float32)), "must be finite"),
    "one_nan": ("npy", npy(np.pad(np.full((3, 1, 1), np.nan, np.float32), ((0, 0), (0, 7), (0, 7)))), "must be finite"),
    "infinite": ("npy", npy(np.full((3, 8, 8), np.inf, np.float32)), "must be finite"),
    "range": ("npy", npy(np.full((3, 8, 8), 255, np.float32)), "floats from 255 to 255"),
    "range_tiff": ("tif", tiff(np.full((8, 8, 3), -2, np.float32)), "in [-1, 1]"),
    "nothing": ("png", b"", "UnidentifiedImageError"),
    "no_rows": ("npy", npy(np.zeros((3, 0, 8), np.float32)), "no pixels: 8x0"),
    "no_array": ("npy", b"", "EOF: reading magic string"),
    "cut": ("png", png(64, 64)[:60], ""),
}


def test_unusable_pictures_are_left_out_each_with_its_reason(run: Path, shards: Path, tmp_path: Path) -> None:
    shard = shards / "000001.tar"
    good = members(shard)
    pixels = {"one.png": png(1, 1), "row.png": png(9, 1)}
    write_tar(shard, good | {f"{key}.{field}": data for key, (field, data, _) in BROKEN.items()} | pixels)
    assert command("encode", run, shards, tmp_path / "out", "--batch", 3) == 0
    totals = json.loads((tmp_path / "out" / "latents.json").read_text())["shards"]
    assert {name: shard["left_out"] for name, shard in totals.items()} == {"000000.tar": 0, "000001.tar": len(BROKEN)}
    left_out = dict(json.loads((tmp_path / "out" / "records" / "000001.json").read_text())["quarantined"])
    assert left_out.keys() == BROKEN.keys()
    for key, (_, _, reason) in BROKEN.items():
        assert reason in left_out[key], key
    dataset = LatentDataset(tmp_path / "out")
    keys = [dataset.key(i) for i in range(len(dataset))]
    assert keys == [*"ab.v1.0 c d e f g h i j k".replace("ab", "a b").split(), "one", "row"]
    assert (dataset.size(keys.index("one")), dataset.size(keys.index("row"))) == ((1, 1), (1, 9))
    assert command("decode", run, tmp_path / "out", tmp_path / "images") == 0
    with Image.open(tmp_path / "images" / "one.png") as picture:
        assert picture.size == (1, 1)


def test_nothing_that_can_be_encoded_is_an_error(run: Path, tmp_path: Path, refused: Refused) -> None:
    write_tar(tmp_path / "floats" / "0.tar", {"a.npy": BROKEN["nan"][1], "b.npy": BROKEN["range"][1]})
    assert "none of the images could be encoded, such as a (floats" in refused(
        "encode", run, tmp_path / "floats", tmp_path / "out"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "empty.png").touch()
    assert "such as empty (UnidentifiedImageError" in refused("encode", run, folder, tmp_path / "out2")
    five = export(tmp_path / "five", seed=0, in_channels=5)
    write_tar(tmp_path / "colour" / "0.tar", {"a.png": png(8, 8)})
    message = refused("encode", five, tmp_path / "colour", tmp_path / "out3")
    assert "mode RGB where 5 channels are wanted" in message
    for number in ("", 2, 3):
        assert not json.loads((tmp_path / f"out{number}" / "latents.json").read_text())["complete"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (npy(np.zeros((5, 4, 4), np.float16)), "is float16 of shape (5, 4, 4), not float16 (8, h, w)"),
        (b"", "damaged"),
        (b"abc", "damaged"),
    ],
)
def test_damaged_latents_are_named(
    run: Path, shards: Path, tmp_path: Path, refused: Refused, array: bytes, message: str
) -> None:
    out = tmp_path / "out"
    assert command("encode", run, shards, out) == 0
    before = digests(out)
    write_tar(out / "000001.tar", members(out / "000001.tar") | {"i.moments.npy": array})
    for arguments in (("decode", run, out, tmp_path / "images"), ("roundtrip", run, out, shards)):
        error = refused(*arguments)
        assert "000001.tar is damaged (i.moments.npy" in error and message in error
    with pytest.raises(UserError, match=r"i\.moments\.npy"):
        LatentDataset(out).raw(8)
    (out / "000001.tar").unlink()  # the remedy it names
    (out / "records" / "000001.json").unlink()
    assert command("encode", run, shards, out) == 0
    assert digests(out) == before


def test_latents_that_decode_to_nothing_finite_are_named_and_the_rest_is_written(
    run: Path, shards: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    assert command("encode", run, shards, out) == 0
    content = members(out / "000001.tar")
    broken = np.load(io.BytesIO(content["i.moments.npy"]))
    broken[0, 0, 0] = np.nan
    write_tar(out / "000001.tar", content | {"i.moments.npy": npy(broken)})
    assert "1 of 11 latents, such as i, gave values that are not finite:" in refused(
        "decode", run, out, tmp_path / "images"
    )
    assert {path.stem for path in (tmp_path / "images").iterdir()} == {"a", "b.v1.0", *"cdefghjk"}


def test_files_in_the_way_are_named(run: Path, shards: Path, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "out"):
        assert f"cannot make a file in {file}: Not a directory" in refused("encode", run, shards, out)
    assert command("encode", run, shards, tmp_path / "out") == 0
    assert f"cannot make the folder {file}" in refused("decode", run, tmp_path / "out", file)
    assert file.read_text() == "mine"
    (tmp_path / "out" / "latents.json").write_text("{")
    assert "latents.json is damaged" in refused("encode", run, shards, tmp_path / "out")
    assert "has no latents.json" in refused("decode", run, shards, tmp_path / "images")


def test_shards_that_vanish_while_they_are_encoded(
    run: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, kept, out = tmp_path / "three", tmp_path / "kept.tar", tmp_path / "out"
    for name in "012":
        write_shard(shards / f"{name}.tar", [f"{name}_{i}" for i in range(20)])
    options = ("--batch", 1)  # windows of eight pictures, which get done before the third shard is met
    assert command("encode", run, shards, tmp_path / "calm", *options) == 0

    def vanish(folder: Path, job: LatentJob) -> LatentsFile:
        begun = open_job(folder, job)
        shutil.move(shards / "2.tar", kept)  # the index has been read
        return begun

    with monkeypatch.context() as patch:
        patch.setattr(encode, "open_job", vanish)
        assert "2.tar cannot be read" in refused("encode", run, shards, out, *options)
    assert [path.name for path in out.glob("*.tar")] == ["0.tar"]
    assert (out / "0.tar").read_bytes() == (tmp_path / "calm" / "0.tar").read_bytes()
    assert "unfinished" in refused("decode", run, out, tmp_path / "images")
    shutil.move(kept, shards / "2.tar")
    assert command("encode", run, shards, out, *options) == 0
    assert digests(out) == digests(tmp_path / "calm")
    (out / "0.tar").unlink()
    assert "0.tar is damaged" in refused("decode", run, out, tmp_path / "images")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 kB; skipped where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no page free."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    assert shutil.disk_usage(disk).free == 0
    return path


@pytest.mark.parametrize("when", ["before", "shard", "record", "totals"])
def test_full_disk_keeps_finished_shards(
    run: Path,
    shards: Path,
    tmp_path: Path,
    small_disk: Path,
    refused: Refused,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command("encode", run, shards, tmp_path / "calm") == 0
    out = small_disk / "out"
    where = {"before": "open_job", "shard": "write_latent_shard", "record": "write_record", "totals": "_finish"}[when]
    real = getattr(encode, where)

    def after_filling(*arguments: object) -> object:
        if when in ("before", "totals") or "000001" in str(arguments):
            fill(small_disk)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(encode, where, after_filling)
        assert "No space left" in refused("encode", run, shards, out)
    finished = {"before": 0, "shard": 1, "record": 2, "totals": 2}[when]
    assert len(list(out.glob("*.tar"))) == finished
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "calm" / path.name).read_bytes()
    assert not list(out.rglob(".tmp-*"))
    (small_disk / "filler").unlink()
    assert command("encode", run, shards, out) == 0
    assert digests(out) == digests(tmp_path / "calm")


def test_full_disk_keeps_decoded_pictures(
    run: Path, shards: Path, tmp_path: Path, small_disk: Path, refused: Refused
) -> None:
    out, images = tmp_path / "out", small_disk / "images"
    assert command("encode", run, shards, out) == 0
    assert command("decode", run, out, images, "--count", 3) == 0
    filler = fill(small_disk)
    (images / "c.png").unlink()  # room for as much
    assert "No space left" in refused("decode", run, out, images)
    for path in images.iterdir():
        assert not path.name.startswith(".tmp-")
        with Image.open(path) as picture:
            picture.load()
    filler.unlink()
    assert command("decode", run, out, images) == 0
    assert len(list(images.iterdir())) == 11
