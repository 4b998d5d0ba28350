"""`ldm-vae encode` and `decode`: shards to latents and back, interrupted, shared out, with broken samples."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from ldm_vae import LatentCodec, LatentDataset
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.errors import UserError
from ldm_vae.interop.diffusers import write_folder
from ldm_vae.interop.layouts import kl as layout
from tests.cli.commands import command, digests
from tests.conftest import members, write_tar
from tests.kl import autoencoder_in
from tests.tolerance import roundings

pytestmark = pytest.mark.numerical


def array(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))


def test_moments_sizes_and_other_fields_are_those_of_the_samples(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("encode", run, shards, out, "--batch", 2, "--mirrored") == 0
    codec = LatentCodec.load(run, device="cpu")
    assert sorted(path.name for path in out.glob("*.tar")) == ["000000.tar", "000001.tar"]
    content = json.loads((out / "latents.json").read_text())
    for name in ("000000.tar", "000001.tar"):
        images, latents = members(shards / name), members(out / name)
        keys = [member.removesuffix(".png") for member in images if member.endswith(".png")]
        record = json.loads((out / "records" / f"{name[:6]}.json").read_text())
        assert record["keys"] == keys
        sizes = dict(zip(keys, record["sizes"], strict=True))
        assert [member for member in latents if member.endswith(".cls")] == [f"{key}.cls" for key in keys]
        assert not any(member.endswith(".png") for member in latents)
        for key in keys:
            image = torch.from_numpy(decode_image(images[f"{key}.png"], "png", 3))[None]
            assert sizes[key] == list(image.shape[2:])
            for field, expected in (
                ("moments.npy", codec.moments(image)),
                ("mirrored.moments.npy", codec.moments(image.flip(3))),
            ):
                stored = array(latents[f"{key}.{field}"])
                assert stored.dtype == torch.float16
                # float16 keeps 11 bits. In a batch, float32 is summed in another order: some tens of roundings.
                atol = roundings(expected, 100)
                torch.testing.assert_close(stored.float(), expected[0], rtol=2**-11, atol=atol)
            for field in ("cls", "txt"):
                assert latents[f"{key}.{field}"] == images[f"{key}.{field}"]
    assert content["samples"] == 11
    assert (content["job"]["codec"], content["job"]["encoder"]) == (codec.weights_hash, codec.encoder_hash)
    means = np.concatenate([
        array(data)[:4].double().flatten(1).numpy()
        for name in ("000000.tar", "000001.tar")
        for member, data in members(out / name).items()
        if member.endswith(".moments.npy") and not member.endswith("mirrored.moments.npy")
    ], axis=1)  # fmt: skip
    assert content["statistics"]["images"] == 11
    np.testing.assert_allclose(content["statistics"]["channel_std"], means.std(axis=1), rtol=1e-3)  # float16
    assert content["scale"] is None  # nobody has measured the codec


def test_webdataset_reads_the_latents(run: Path, shards: Path, tmp_path: Path) -> None:
    assert command("encode", run, shards, tmp_path / "out") == 0
    data = webdataset.WebDataset(str(tmp_path / "out" / "000001.tar"), shardshuffle=False).decode()
    samples = list(data)
    assert [sample["__key__"] for sample in samples] == ["h", "i", "j", "k"]
    assert samples[1]["moments.npy"].shape == (8, 5, 8)
    assert (samples[1]["cls"], samples[1]["txt"]) == (1, "number 1")


@pytest.mark.parametrize("latents", ["mode", "sample"])
def test_one_latent_instead_of_moments(run: Path, shards: Path, tmp_path: Path, latents: str) -> None:
    assert command("encode", run, shards, tmp_path / "moments", "--batch", 3) == 0
    for name, batch in (("out", 3), ("again", 1)):
        assert command("encode", run, shards, tmp_path / name, "--latents", latents, "--batch", batch) == 0
    moments = LatentDataset(tmp_path / "moments", sample=False)
    first, second = (LatentDataset(tmp_path / name) for name in ("out", "again"))
    distance = torch.stack([(first.raw(i) - moments.raw(i)).abs().mean() for i in range(11)])
    assert (distance > 0.1).all() if latents == "sample" else (distance < 1e-3).all()
    for i in range(
        11
    ):  # the draw is a function of seed and key; in other batches it may round to a neighbour in float16
        one, other = first.raw(i), second.raw(i)
        torch.testing.assert_close(one, other, rtol=2**-10, atol=roundings(other, 100))
    if latents == "sample":
        tars = [members(tmp_path / "moments" / name) for name in ("000000.tar", "000001.tar")]
        noise = []
        for i in range(11):
            mean, logvar = array(tars[i // 7][f"{first.key(i)}.moments.npy"]).float().chunk(2)
            noise.append((first.raw(i) - mean) / (0.5 * logvar).exp())
        assert not torch.allclose(noise[0], noise[3], atol=0.5)  # of one shape, each with its own
        every = torch.cat([one.flatten() for one in noise])
        within = 4 / len(every) ** 0.5  # four standard errors of the mean; the deviation's is smaller
        assert every.mean().item() == pytest.approx(0, abs=within)
        assert every.std().item() == pytest.approx(1, abs=within)


def test_rerun_does_only_what_is_missing_to_the_same_bytes(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("encode", run, shards, out) == 0
    before = digests(out)
    untouched = (out / "000000.tar").stat().st_mtime_ns
    (out / "000001.tar").unlink()
    assert command("encode", run, shards, out) == 0
    assert digests(out) == before
    assert (out / "000000.tar").stat().st_mtime_ns == untouched


def test_shards_are_shared_out_and_the_last_process_to_finish_writes_the_totals(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("encode", run, shards, tmp_path / "one") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert command("encode", run, shards, tmp_path / "two") == 0
    assert [path.name for path in (tmp_path / "two").glob("*.tar")] == ["000000.tar"]
    with pytest.raises(UserError, match="unfinished"):
        LatentDataset(tmp_path / "two")
    monkeypatch.setenv("RANK", "1")
    assert command("encode", run, shards, tmp_path / "two") == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_broken_samples_are_left_out_and_named(run: Path, shards: Path, tmp_path: Path) -> None:
    shard = shards / "000001.tar"
    content = members(shard)
    content["i.png"] = b"no picture"
    write_tar(shard, content)
    assert command("encode", run, shards, tmp_path / "out") == 0
    written = json.loads((tmp_path / "out" / "latents.json").read_text())
    assert [written["shards"][name]["left_out"] for name in ("000000.tar", "000001.tar")] == [0, 1]
    record = json.loads((tmp_path / "out" / "records" / "000001.json").read_text())
    assert "UnidentifiedImageError" in dict(record["quarantined"])["i"]
    assert written["samples"] == 10
    assert not any(name.startswith("i.") for name in members(tmp_path / "out" / "000001.tar"))
    assert len(LatentDataset(tmp_path / "out")) == 10


def test_other_job_in_the_same_folder_is_refused(
    run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("encode", run, shards, tmp_path / "out") == 0
    before = digests(tmp_path / "out")
    assert command("encode", run, shards, tmp_path / "out", "--crop", "center:8") == 2
    assert "made with crop None, not 8" in capfd.readouterr().err
    assert command("encode", run, shards, shards) == 2
    assert "holds shards that are no latents" in capfd.readouterr().err
    assert command("encode", run, shards, tmp_path / "other", "--multiple", 6) == 2
    assert "give a multiple of f, which is 4" in capfd.readouterr().err
    assert digests(tmp_path / "out") == before


def test_multiple_pads_further_and_pictures_come_back_at_their_size(run: Path, shards: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    assert command("encode", run, shards, out, "--multiple", 16) == 0
    assert all(side % 4 == 0 for i in range(11) for side in LatentDataset(out).raw(i).shape[1:])
    assert command("decode", run, out, images, "--count", 9) == 0
    assert sorted(path.name for path in images.iterdir()) == sorted(
        f"{key}.png" for key in ["a", "b.v1.0", "c", "d", "e", "f", "g", "h", "i"]
    )
    with Image.open(images / "b.v1.0.png") as picture:
        assert picture.size == (30, 17)


def test_decoded_pictures_are_the_reconstructions(run: Path, shards: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    assert command("encode", run, shards, out) == 0
    assert command("decode", run, out, images) == 0
    codec = LatentCodec.load(run, device="cpu")
    source = members(shards / "000000.tar")
    for key in ("a", "b.v1.0", "c"):
        image = torch.from_numpy(decode_image(source[f"{key}.png"], "png", 3))[None]
        expected = to_uint8(codec.reconstruct(image))[0].permute(1, 2, 0).numpy().astype(int)
        found = np.asarray(Image.open(images / f"{key}.png")).astype(int)
        assert np.abs(found - expected).max() <= 1  # float16 latents move a value across a rounding


def test_latents_of_another_codec_are_refused(
    run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("encode", run, shards, tmp_path / "out") == 0
    other = autoencoder_in(LatentCodec.load(run, device="cpu").model)
    config = layout.to_config(other.config, LatentScale(), sample_size=32, force_upcast=False)
    # Latents do not depend on the decoder: one that was trained for them reads them and goes on with the folder.
    for name, last in (("decoder", other.decoder.conv_out), ("encoder", other.encoder.conv_out)):
        assert last.bias is not None
        with torch.no_grad():
            last.bias.add_(0.1)
        write_folder(tmp_path / name, config, other.exported_state(), {})
    before = digests(tmp_path / "out")
    assert command("decode", tmp_path / "decoder", tmp_path / "out", tmp_path / "images") == 0
    assert command("encode", tmp_path / "decoder", shards, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == before
    capfd.readouterr()
    assert command("decode", tmp_path / "encoder", tmp_path / "out", tmp_path / "none") == 2
    assert "of another codec" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()


def test_dataset_draws_from_the_stored_posterior(run: Path, shards: Path, tmp_path: Path) -> None:
    assert command("encode", run, shards, tmp_path / "out") == 0
    scale = LatentScale(0.25, 0.5)
    dataset = LatentDataset(tmp_path / "out", scale=scale)
    draws = []
    for epoch in range(300):
        dataset.set_epoch(epoch)
        draws.append(scale.remove(dataset[1]["latent"][None]))
    mean, logvar = array(members(tmp_path / "out" / "000000.tar")["b.v1.0.moments.npy"]).float().chunk(2)
    noise = (torch.cat(draws) - mean) / (0.5 * logvar).exp()
    # five standard errors over 300 draws, for the largest of the latent's numbers
    assert noise.mean(dim=0).abs().max() < 5 / 300**0.5
    assert (noise.std(dim=0) - 1).abs().max() < 5 / 600**0.5


def test_dataset_scales_draws_and_mirrors_by_seed_and_epoch(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("stats", run, shards, "--crop", "center:8", "--write") == 0
    assert command("encode", run, shards, out, "--mirrored", "--crop", "center:8") == 0
    codec = LatentCodec.load(run, device="cpu")
    means = LatentDataset(out, codec=codec, sample=False, mirror=False)
    item = means[1]
    assert (item["key"], item["cls"], item["txt"]) == ("b.v1.0", 1, "number 1")
    assert item["latent"].dtype == torch.float32
    assert codec.scale is not None
    torch.testing.assert_close(item["latent"], codec.scale.apply(means.raw(1)))
    flat = torch.stack([means[i]["latent"] for i in range(len(means))])
    assert flat.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    drawn = LatentDataset(out, codec=codec.weights_hash, seed=3)
    assert torch.equal(drawn[4]["latent"], LatentDataset(out, seed=3)[4]["latent"])
    assert not torch.equal(drawn[4]["latent"], LatentDataset(out, seed=4)[4]["latent"])
    before = drawn[4]["latent"]
    drawn.set_epoch(1)
    assert not torch.equal(drawn[4]["latent"], before)
    mirror = LatentDataset(out, sample=False)
    kept = sum(torch.equal(mirror[i]["latent"], means[i]["latent"]) for i in range(11))
    assert 0 < kept < 11
    loader = torch.utils.data.DataLoader(drawn, batch_size=4, num_workers=2)
    batches = list(loader)
    one_by_one = torch.stack([drawn[i]["latent"] for i in range(len(drawn))])
    assert torch.equal(torch.cat([batch["latent"] for batch in batches]), one_by_one)
    with pytest.raises(IndexError):  # by which `for item in drawn` ends
        drawn[len(drawn)]
    assert batches[0]["key"] == ["a", "b.v1.0", "c", "d"]
    with pytest.raises(UserError, match="of another codec"):
        LatentDataset(out, codec="0" * 64)


def test_a_folder_and_its_codec_have_one_scale(run: Path, shards: Path, tmp_path: Path) -> None:
    """Else a denoiser would learn other latents than are decoded: pictures were 21 dB off."""
    out, measured, sd3 = tmp_path / "out", tmp_path / "measured", tmp_path / "sd3"
    assert command("encode", run, shards, out) == 0
    unmeasured = LatentDataset(out, codec=LatentCodec.load(run, device="cpu"), sample=False)
    with pytest.raises(UserError, match=r"have no scale, because nobody had measured their codec: run `ldm-vae stats"):
        unmeasured[0]
    assert command("stats", run, shards, "--write") == 0
    codec = LatentCodec.load(run, device="cpu")
    assert LatentDataset(out, codec=codec, sample=False).scale == codec.scale  # measured since
    assert command("encode", run, shards, measured) == 0
    assert LatentDataset(measured, codec=codec).scale == codec.scale
    assert command("export", run, sd3, "--scale", "shift") == 0  # as for pipelines that subtract a shift
    other = LatentCodec.load(sd3, device="cpu")
    assert other.hashes[:2] == codec.hashes[:2] and other.scale is not None and codec.scale is not None
    with pytest.raises(UserError) as refusal:
        LatentDataset(measured, codec=other)
    for number in (codec.scale.factor, other.scale.factor, other.scale.shift):
        assert str(number) in str(refusal.value)
    assert LatentDataset(measured, codec=other, scale=other.scale).scale == other.scale  # said, so meant
    assert command("decode", sd3, measured, tmp_path / "images") == 0  # raw latents are decoded, whatever the scale
