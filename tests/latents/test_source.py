"""What a folder of latents was made from: edited, moved, removed, exchanged shards, and tars that were damaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_vae import LatentCodec, LatentDataset
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.shards.samples import read_samples
from ldm_vae.data.shards.shard import Fields, ShardIndex
from ldm_vae.errors import UserError
from ldm_vae.latents.check import check_latents
from ldm_vae.latents.encode import encode_shards
from ldm_vae.latents.folder import read_latents_file, read_records
from ldm_vae.latents.job import latent_job
from ldm_vae.latents.source import ContentDigest, source_digest
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.writers import HOST
from tests.cli.commands import digests
from tests.conftest import members, write_arrays, write_tar

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False), LatentScale(0.5))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that no other test has."""
    monkeypatch.setattr("ldm_vae.latents.source.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all shards that are read, one after the other."""
    names: list[str] = []

    def counted(shard: ShardIndex) -> Iterator[tuple[str, Fields | str]]:
        names.append(Path(shard.url).name)
        return read_samples(shard)

    monkeypatch.setattr("ldm_vae.latents.source.read_samples", counted)
    return names


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (3, 8, 8)).astype(np.float32)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        pictures = {f"{number}{key}": picture(10 * number + i) for i, key in enumerate("abc")}
        write_arrays(tmp_path / "shards" / f"{number}.tar", pictures)
        labels = {f"{key}.cls": b"7" for key in pictures}
        content = members(tmp_path / "shards" / f"{number}.tar") | labels
        write_tar(tmp_path / "shards" / f"{number}.tar", dict(sorted(content.items())))
    return tmp_path / "shards"


def encode(codec: LatentCodec, shards: Path, out: Path, **options: bool) -> list[str]:
    """Encodes, and returns the names of the tars that were written."""
    before = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    job = latent_job(
        codec, str(shards), latents="moments", mirrored=False, resize=None, resize_filter="bicubic", crop=None,
        multiple=None, batch=2, keep_image=False, seed=0,
    )  # fmt: skip
    index = load_index(str(shards))
    encode_shards(codec, index, out, job, workers=2, rank=0, world=1, done=lambda *_: None, **options)
    return sorted(path.name for path in out.glob("*.tar") if before.get(path.name) != path.stat().st_ino)


def edit(shard: Path, old: bytes, new: bytes) -> None:
    """Changes bytes of a tar and keeps its size."""
    data = shard.read_bytes()
    assert data.count(old) and len(old) == len(new)
    shard.write_bytes(data.replace(old, new, 1))


def test_a_digest_is_of_keys_fields_and_contents() -> None:
    def digest(*samples: tuple[str, dict[str, bytes] | str]) -> str:
        content = ContentDigest()
        for key, fields in samples:
            content.update(key, fields)
        return content.hexdigest()

    one = digest(("a", {"cls": b"1", "jpg": b"x"}))
    assert one == digest(("a", {"jpg": b"x", "cls": b"1"}))
    others = [
        digest(("a", {"cls": b"1", "jpg": b"y"})),
        digest(("b", {"cls": b"1", "jpg": b"x"})),
        digest(("a", {"cls": b"1", "png": b"x"})),
        digest(("a", {"cls": b"1j", "pg": b"x"})),
        digest(("a", {"cls": b"1"}), ("b", {})),
        digest(("a", "cut off")),
        digest(),
    ]
    assert len({one, *others}) == len(others) + 1


def test_a_corrected_label_or_picture_is_encoded_again(codec: LatentCodec, shards: Path, tmp_path: Path) -> None:
    """Tars are padded to 10,240 bytes, so a correction changes no size."""
    out = tmp_path / "out"
    assert encode(codec, shards, out) == ["0.tar", "1.tar", "2.tar"]
    assert encode(codec, shards, out) == []
    write_tar(shards / "1.tar", members(shards / "1.tar") | {"1b.cls": b"8"})
    assert encode(codec, shards, out) == ["1.tar"]
    assert [LatentDataset(out)[item]["cls"] for item in range(9)] == [7, 7, 7, 7, 8, 7, 7, 7, 7]
    before = members(out / "2.tar")
    edit(shards / "2.tar", picture(20).tobytes(), picture(99).tobytes())
    assert encode(codec, shards, out) == ["2.tar"]
    after = members(out / "2.tar")
    assert [name for name in before if before[name] != after[name]] == ["2a.moments.npy"]
    encode(codec, shards, tmp_path / "calm")
    assert digests(out) == digests(tmp_path / "calm")


def test_a_file_that_did_not_change_is_not_read_again(
    codec: LatentCodec, shards: Path, tmp_path: Path, cache: Path, read: list[str]
) -> None:
    out = tmp_path / "out"
    encode(codec, shards, out)
    assert read == ["0.tar", "1.tar", "2.tar"]  # while they were encoded
    encode(codec, shards, out)
    assert len(read) == 3
    os.utime(shards / "1.tar")
    assert encode(codec, shards, out) == []
    assert read[3:] == ["1.tar"]
    shutil.rmtree(cache)
    assert encode(codec, shards, out) == []
    assert read[4:] == ["0.tar", "1.tar", "2.tar"]
    for file in (cache / "sources").iterdir():
        file.write_text("{")  # a damaged cache is none
    assert encode(codec, shards, out) == []
    assert read[7:] == ["0.tar", "1.tar", "2.tar"]
    assert encode(codec, shards, out, verify=True) == []
    assert read[10:] == ["0.tar", "1.tar", "2.tar"]


def test_an_edit_while_it_is_read_is_not_remembered(
    codec: LatentCodec, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(shard: ShardIndex) -> Iterator[tuple[str, Fields | str]]:
        yield from read_samples(shard)
        os.utime(shard.url)

    monkeypatch.setattr("ldm_vae.latents.source.read_samples", edited)
    encode(codec, shards, tmp_path / "out")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_the_same_contents_packed_otherwise_have_the_same_digest(shards: Path) -> None:
    first = source_digest(load_index(str(shards)).shards[0])
    data = (shards / "0.tar").read_bytes()
    (shards / "0.tar").write_bytes(data + b"\0" * 20480)
    assert source_digest(load_index(str(shards)).shards[0]) == first


def test_shards_may_move(codec: LatentCodec, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(codec, shards, out)
    before = digests(out)
    shards.rename(tmp_path / "moved")
    (out / "1.tar").unlink()
    assert encode(codec, tmp_path / "moved", out) == ["1.tar"]
    moved = digests(out)
    assert [name for name in moved if moved[name] != before[name]] == ["latents.json"]  # it says where they are now
    assert encode(codec, tmp_path / "moved", out) == []
    write_tar(tmp_path / "moved" / "1.tar", members(tmp_path / "moved" / "1.tar") | {"1b.cls": b"8"})
    assert encode(codec, tmp_path / "moved", out) == ["1.tar"]


def test_another_data_set_is_refused(codec: LatentCodec, shards: Path, tmp_path: Path) -> None:
    """Its shards have the same names, and would overwrite the latents."""
    out = tmp_path / "out"
    encode(codec, shards, out)
    before = digests(out)
    for number in range(3):
        write_arrays(tmp_path / "other" / f"{number}.tar", {f"x{number}": picture(number)})
    (tmp_path / "other" / "2.tar").rename(tmp_path / "kept.tar")
    with pytest.raises(UserError, match="was begun with"):  # and nothing is pruned before that is known
        encode(codec, tmp_path / "other", out, prune=True)
    assert digests(out) == before
    (tmp_path / "kept.tar").rename(tmp_path / "other" / "2.tar")
    with pytest.raises(
        UserError, match=r"was begun with .*shards, and none of its latents are of .*other: give another folder"
    ):
        encode(codec, tmp_path / "other", out)
    assert digests(out) == before


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_latents_without_their_shard_are_refused_or_removed(
    codec: LatentCodec, shards: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out"
    encode(codec, shards, out)
    before = digests(out)
    if how == "removed":
        (shards / "0.tar").unlink()
    else:
        (shards / "0.tar").rename(shards / "3.tar")
    with pytest.raises(UserError, match=r"holds latents of 1 shard that .*shards lacks, such as 0\.tar.*--prune"):
        encode(codec, shards, out)
    assert digests(out) == before
    encode(codec, shards, out, prune=True)
    keys = [LatentDataset(out).key(item) for item in range(len(LatentDataset(out)))]
    assert keys == ["1a", "1b", "1c", "2a", "2b", "2c", *(["0a", "0b", "0c"] if how == "renamed" else [])]
    encode(codec, shards, tmp_path / "calm")
    assert digests(out).items() >= digests(tmp_path / "calm").items()  # locks stay


def test_a_folder_of_pictures_that_lost_its_first_ones(
    codec: LatentCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of pictures count as shards, so all pictures move up; none may be there twice."""
    monkeypatch.setattr("ldm_vae.data.shards.scan.FOLDER_SHARD", 4)
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for number in range(12):
        np.save(folder / f"{number:02d}.npy", picture(number))
    encode(codec, folder, out)
    for number in range(6):
        (folder / f"{number:02d}.npy").unlink()
    with pytest.raises(UserError, match="--prune"):
        encode(codec, folder, out)
    encode(codec, folder, out, prune=True)
    dataset = LatentDataset(out)
    assert [dataset.key(item) for item in range(len(dataset))] == [f"{number:02d}" for number in range(6, 12)]


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_damaged_latent_tar_is_made_again(codec: LatentCodec, shards: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    encode(codec, shards, out)
    before = digests(out)
    data = (out / "1.tar").read_bytes()
    (out / "1.tar").write_bytes(data[: len(data) // 2] if how == "cut" else data[:600] + b"!" + data[601:])
    if how == "changed":  # of the same size, which only reading it tells
        assert encode(codec, shards, out) == []
    assert encode(codec, shards, out, verify=how == "changed") == ["1.tar"]
    assert digests(out) == before


def test_latents_json_has_a_constant_number_of_bytes_a_shard(codec: LatentCodec, tmp_path: Path) -> None:
    sizes = []
    for samples in (2, 40):
        arrays = {f"{number:03d}": picture(number) for number in range(samples)}
        write_arrays(tmp_path / f"shards{samples:02d}" / "0.tar", arrays)
        encode(codec, tmp_path / f"shards{samples:02d}", tmp_path / str(samples))
        content = json.loads((tmp_path / str(samples) / "latents.json").read_text())
        sizes.append(len(json.dumps(content["shards"])))
        record = (tmp_path / str(samples) / "records" / "0.json").read_bytes()
        assert content["shards"]["0.tar"]["record"] == hashlib.sha256(record).hexdigest()
    assert sizes[1] - sizes[0] == len("40") - len("2")


def test_a_record_of_another_shard_is_not_believed(codec: LatentCodec, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(codec, shards, out)
    record = out / "records" / "1.json"
    record.write_text(record.read_text().replace('"1b"', '"1x"'))
    with pytest.raises(UserError, match=r"1\.tar is damaged \(its record is missing or is another one\)"):
        LatentDataset(out).key(4)


def test_arithmetic_and_source_are_written_without_secrets_or_times(
    codec: LatentCodec, shards: Path, tmp_path: Path
) -> None:
    encode(codec, shards, tmp_path / "out")
    record = read_records(tmp_path / "out")["0.tar"]
    assert record.arithmetic is not None and record.arithmetic.device == "cpu"
    assert record.arithmetic.torch == torch.__version__
    assert record.arithmetic.float32 == "exact"
    job = latent_job(
        codec, "https://user:pass@host/{0..2}.tar?sig=abc", latents="moments", mirrored=False, resize=None,
        resize_filter="bicubic", crop=None, multiple=None, batch=2, keep_image=False, seed=0,
    )  # fmt: skip
    assert job.source == "https://host/{0..2}.tar"
    assert read_latents_file(tmp_path / "out").job.source == str(shards)


def test_the_same_relative_path_elsewhere_is_another_data_set(
    codec: LatentCodec, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encode(codec, Path("shards"), tmp_path / "out")
    before = digests(tmp_path / "out")
    for number in range(3):
        write_arrays(tmp_path / "elsewhere" / "shards" / f"{number}.tar", {f"x{number}": picture(number)})
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was begun with"):
        encode(codec, Path("shards"), tmp_path / "out")
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize("how", ["keys swapped", "keys cut", "total", "shard removed", "statistics"])
def test_what_was_edited_is_made_again_and_not_passed_on(
    codec: LatentCodec, shards: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out"
    encode(codec, shards, out)
    before = digests(out)
    path = out / ("latents.json" if how in ("total", "shard removed") else "records/0.json")
    content = json.loads(path.read_text())
    if how == "keys swapped":
        content["keys"] = content["keys"][::-1]
    elif how == "keys cut":
        content["keys"], content["sizes"] = content["keys"][:2], content["sizes"][:2]
    elif how == "total":
        content["samples"] = 10
    elif how == "shard removed":
        del content["shards"]["1.tar"]
    else:
        content["statistics"] = {}
    path.write_text(json.dumps(content))
    assert [problem.kind for problem in check_latents(out, None).problems][:1] == ["damaged"]
    write_tar(shards / "2.tar", members(shards / "2.tar"))  # the same contents, written anew
    encode(codec, shards, out)
    assert digests(out) == before


def test_files_of_others_are_not_overwritten(codec: LatentCodec, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "new" / "records").mkdir(parents=True)
    (tmp_path / "new" / "records" / "0.json").write_text("mine")
    with pytest.raises(UserError, match=r"holds shards that are no latents \(records/0\.json\)"):
        encode(codec, shards, tmp_path / "new")
    out = tmp_path / "out"
    encode(codec, shards, out)
    write_arrays(shards / "3.tar", {"3a": picture(1)})
    for mine in (out / "3.tar", out / "records" / "3.json"):
        mine.write_text("mine")
        with pytest.raises(UserError, match="is none that encode wrote"):
            encode(codec, shards, out)
        assert mine.read_text() == "mine" and len(LatentDataset(out)) == 9
        mine.unlink()
    assert encode(codec, shards, out) == ["3.tar"]


@pytest.mark.parametrize("version", [3, 99])
def test_a_later_version_is_refused(codec: LatentCodec, shards: Path, tmp_path: Path, version: int) -> None:
    encode(codec, shards, tmp_path / "out")
    path = tmp_path / "out" / "latents.json"
    path.write_text(path.read_text().replace('"version": 2', f'"version": {version}', 1))
    with pytest.raises(UserError, match=f"has format version {version}, newer than 2: update ldm_vae"):
        LatentDataset(tmp_path / "out")


def test_what_a_killed_writer_left_goes_where_nothing_is_left_to_do(
    codec: LatentCodec, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode(codec, shards, out)
    before = digests(out)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    stage = f".tmp-{HOST}-{dead.stdout.strip()}-00000000-0-"
    for name in (f"{stage}latents.json", f"records/{stage}0.json"):
        (out / name).write_text("{")
    assert encode(codec, shards, out) == []
    assert digests(out) == before
