"""The job behind `ldm-vae encode`: what is left out, what stops it, and where the pictures may come from."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.shards.index import load_index
from ldm_vae.errors import UserError
from ldm_vae.latents import folder as latent_shards
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.encode import encode_shards
from ldm_vae.latents.folder import read_latents_file, read_records
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import write_arrays
from tests.kl import autoencoder_in
from tests.latents.jobs import job, run

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False), LatentScale(0.5))


def encode(codec: LatentCodec, shards: Path, out: Path) -> None:
    run(codec, shards, out, job(codec, batch=2))


def picture(value: float | None = None) -> np.ndarray:
    generator = np.random.default_rng(0)
    array = generator.uniform(-1, 1, (3, 8, 8)) if value is None else np.full((3, 8, 8), value)
    return array.astype(np.float32)


def test_latents_that_stay_non_finite_are_quarantined_and_the_rest_goes_on(codec: LatentCodec, tmp_path: Path) -> None:
    with torch.no_grad():
        autoencoder_in(codec.model).encoder.conv_in.weight.fill_(1e38)  # overflows unless the picture is all zeros
    arrays = {"a": picture(0), "b": picture(1), "c": picture(0), "nan": picture(float("nan"))}
    write_arrays(tmp_path / "shards" / "0.tar", arrays)
    encode(codec, tmp_path / "shards", tmp_path / "out")
    assert read_latents_file(tmp_path / "out").shards["0.tar"].left_out == 2
    quarantined = dict(read_records(tmp_path / "out")["0.tar"].quarantined)
    assert quarantined.keys() == {"b", "nan"}
    assert "not finite, in float32 either" in quarantined["b"]
    assert "finite" in quarantined["nan"]
    dataset = LatentDataset(tmp_path / "out", codec=codec)
    assert [dataset.key(i) for i in range(len(dataset))] == ["a", "c"]
    assert all(dataset[i]["latent"].isfinite().all() for i in range(2))


def test_moments_without_a_range_of_their_log_variance_are_refused(codec: LatentCodec, tmp_path: Path) -> None:
    write_arrays(tmp_path / "shards" / "0.tar", {"a": picture()})
    encode(codec, tmp_path / "shards", tmp_path / "out")
    path = tmp_path / "out" / "latents.json"
    content = json.loads(path.read_text())
    assert content["job"]["logvar_range"] == [-30.0, 20.0]
    content["job"]["logvar_range"] = None
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="moments need a logvar_range"):
        LatentDataset(tmp_path / "out")


def test_latents_beyond_float16_are_quarantined_not_stored_as_infinity(codec: LatentCodec, tmp_path: Path) -> None:
    last = autoencoder_in(codec.model).quant_conv
    assert last is not None
    with torch.no_grad():
        last.weight.mul_(1e7)
    write_arrays(tmp_path / "shards" / "0.tar", {"a": picture()})
    with pytest.raises(UserError, match=r"none of the images could be encoded.*float16"):
        encode(codec, tmp_path / "shards", tmp_path / "out")


def test_plain_folder_of_images_becomes_numbered_shards(codec: LatentCodec, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "cats").mkdir(parents=True)
    np.save(folder / "dog.npy", picture())
    np.save(folder / "cats" / "tom.npy", picture(0.5))
    (folder / "cats" / "tom.txt").write_text("a cat")
    encode(codec, folder, tmp_path / "out")
    dataset = LatentDataset(tmp_path / "out", fields=["txt"])
    found = {dataset.key(i): dataset[i] for i in range(len(dataset))}
    assert found.keys() == {"dog", "cats/tom"}
    assert found["cats/tom"]["txt"] == "a cat"


def test_shards_of_one_name_are_refused(codec: LatentCodec, tmp_path: Path) -> None:
    for side in ("left", "right"):
        write_arrays(tmp_path / side / "0.tar", {"a": picture()})
    with pytest.raises(UserError, match=r"several shards are called 0\.tar"):
        encode(codec, tmp_path / "{left,right}" / "0.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_full_disk_keeps_what_is_finished(codec: LatentCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("0.tar", "1.tar"):
        write_arrays(tmp_path / "shards" / name, {f"{name[0]}{key}": picture() for key in "abc"})
    add, room = latent_shards._add, [4]  # members until the disk is full

    def limited(tar: tarfile.TarFile, name: str, data: bytes) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        add(tar, name, data)

    monkeypatch.setattr(latent_shards, "_add", limited)
    with pytest.raises(UserError, match="No space left"):
        encode(codec, tmp_path / "shards", tmp_path / "out")
    assert list(read_records(tmp_path / "out")) == ["0.tar"]
    assert not (tmp_path / "out" / "1.tar").exists()
    assert not list((tmp_path / "out").glob(".tmp-*"))
    monkeypatch.undo()
    encode(codec, tmp_path / "shards", tmp_path / "out")
    assert len(LatentDataset(tmp_path / "out")) == 6


def test_changed_shard_is_encoded_again(codec: LatentCodec, tmp_path: Path) -> None:
    write_arrays(tmp_path / "shards" / "0.tar", {"a": picture()})
    encode(codec, tmp_path / "shards", tmp_path / "out")
    arrays = {f"sample{i}": picture(i / 100) for i in range(40)}
    write_arrays(tmp_path / "shards" / "0.tar", arrays)
    encode(codec, tmp_path / "shards", tmp_path / "out")
    assert len(LatentDataset(tmp_path / "out")) == 40


def test_what_a_kill_leaves_before_its_last_rename_does_not_count(codec: LatentCodec, tmp_path: Path) -> None:
    for name in "01":
        write_arrays(tmp_path / "shards" / f"{name}.tar", {f"{name}{key}": picture() for key in "ab"})
    encode(codec, tmp_path / "shards", tmp_path / "calm")
    encode(codec, tmp_path / "shards", tmp_path / "out")
    for file in ("records/1.json", "1.tar"):
        final = tmp_path / "out" / file
        final.rename(final.with_name(f".tmp-00000000-1-00000000-0-{final.name}"))
        assert list(read_records(tmp_path / "out")) == ["0.tar"]
        encode(codec, tmp_path / "shards", tmp_path / "out")
        for name in (file, "latents.json"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def test_index_that_does_not_fit_its_shard_leaves_samples_out_with_the_reason(
    codec: LatentCodec, tmp_path: Path
) -> None:
    write_arrays(tmp_path / "shards" / "0.tar", {"a": picture(), "b": picture(0.5)})
    index = load_index(str(tmp_path / "shards"))
    path = tmp_path / "shards" / "0.tar"
    path.write_bytes(path.read_bytes().replace(b"b.npy", b"c.npy", 1))
    encode_shards(codec, index, tmp_path / "out", job(codec, batch=2), workers=1, rank=0, world=1, done=lambda *_: None)
    assert "b" in dict(read_records(tmp_path / "out")["0.tar"].quarantined)
