"""Which images are shown, and that what is shown is what the codec makes of them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.codec import LatentCodec, from_pil, to_numpy
from ldm_vae.errors import UserError
from ldm_vae.interop.results import ImageRow, StoredResults
from ldm_vae.report.album import ALBUM_BYTES, make_album
from ldm_vae.report.gallery import (
    GALLERY_IMAGES,
    LONGEST_SIDE,
    Gallery,
    GalleryImage,
    choose,
    make_gallery,
    worst_first,
)
from ldm_vae.report.run import read_run
from tests.conftest import encoded, picture, write_tar
from tests.report.conftest import KEYS, SIZES


def shards_of(run: Path) -> str:
    shards = read_run(str(run)).validation_shards
    assert shards is not None
    return shards


def images(**values: float | None) -> list[ImageRow]:
    return [ImageRow(key=key, values={} if v is None else {"lpips_vgg": v}) for key, v in values.items()]


def test_the_worst_come_first() -> None:
    metric, ranked = worst_first(images(a=0.1, b=0.5, c=None, d=0.3))
    assert (metric, [row.key for row in ranked]) == ("lpips_vgg", ["b", "d", "a"])
    metric, ranked = worst_first([ImageRow(key=k, values={"psnr": v}) for k, v in (("a", 30.0), ("b", 20.0))])
    assert (metric, [row.key for row in ranked]) == ("psnr", ["b", "a"])  # low is bad
    assert worst_first([ImageRow(key="a")]) == (None, [])


@pytest.mark.parametrize("count", range(1, 25))
def test_choice_is_bounded_and_holds_worst_median_and_best(count: int) -> None:
    rows = [ImageRow(key=str(i)) for i in range(count)]
    chosen = choose(rows, "PSNR")
    keys = [choice.key for choice in chosen]
    assert len(keys) == len(set(keys)) == min(count, GALLERY_IMAGES)
    assert {"0", str(count // 2), str(count - 1)} <= set(keys)
    if count > 1:
        assert all(f"{int(c.key) + 1} of {count} by PSNR, worst first" in c.why for c in chosen)
    if count > 2:
        assert [c.key for c in chosen if c.why.startswith("worst")] == ["0"]
        assert [c.key for c in chosen if c.why.startswith("best")] == [str(count - 1)]
        assert str(count // 2) in [c.key for c in chosen if c.why.startswith("median")]


def test_reconstructions_are_those_of_the_codec(whole_run: Path) -> None:
    gallery = make_gallery(LatentCodec.load(whole_run), shards_of(whole_run), [])
    assert [one.choice.key for one in gallery.images] == list(KEYS)
    codec = LatentCodec.load(whole_run, device="cpu")
    for seed, one in enumerate(gallery.images):
        original = picture(seed, SIZES.get(one.choice.key, (96, 72)))
        assert np.array_equal(one.original.transpose(1, 2, 0), np.asarray(original))
        expected = to_numpy(codec.reconstruct(from_pil(original)))[0]
        difference = one.reconstruction.transpose(1, 2, 0).astype(int) - expected
        assert np.abs(difference).max() <= 1  # order of summation may tip a rounding
        error = ((expected.astype(float) - np.asarray(original)) ** 2).mean()
        assert one.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
        assert one.latent.shape == (2, -(-original.height // 2), -(-original.width // 2))
    assert gallery.facts["weights sha256"] == codec.weights_hash


def test_images_are_found_by_key_and_strangers_are_told(whole_run: Path) -> None:
    rows = [ImageRow(key="dog"), ImageRow(key="gone"), ImageRow(key="cat")]
    gallery = make_gallery(LatentCodec.load(whole_run), shards_of(whole_run), choose(rows, "PSNR"))
    assert [one.choice.key for one in gallery.images] == ["dog", "cat"]
    assert gallery.notes[0].startswith("1 of the images chosen from results.json")
    gallery = make_gallery(LatentCodec.load(whole_run), shards_of(whole_run), choose(rows[1:2], "PSNR"))
    assert len(gallery.images) == len(KEYS) and "None of the images" in gallery.notes[0]


def test_numbers_of_resized_images_are_told(whole_run: Path) -> None:
    codec, shards = LatentCodec.load(whole_run), shards_of(whole_run)
    rows = StoredResults.read(whole_run / "results.json").per_image
    assert make_gallery(codec, shards, choose(rows, "PSNR")).notes == []
    cropped = [row.model_copy(update={"height": 16, "width": 16}) for row in rows]
    (note,) = make_gallery(codec, shards, choose(cropped, "PSNR")).notes
    assert "resized or cropped" in note


def test_a_broken_image_is_told_and_the_others_shown(whole_run: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "000000.tar", {"bad.png": b"no picture", "good.png": encoded(picture(1))})
    gallery = make_gallery(LatentCodec.load(whole_run), str(tmp_path), [])
    assert [one.choice.key for one in gallery.images] == ["good"]
    assert gallery.notes[0].startswith("bad cannot be shown: ")


def test_of_a_large_picture_the_middle_is_shown(whole_run: Path, tmp_path: Path) -> None:
    wide = picture(3, (LONGEST_SIDE + 40, 50))
    wide.save(tmp_path / "wide.png")
    (one,) = make_gallery(LatentCodec.load(whole_run), str(tmp_path), []).images
    assert one.size == (50, LONGEST_SIDE + 40)
    assert np.array_equal(one.original.transpose(1, 2, 0), np.asarray(wide)[:, 20:-20])


def test_shards_that_cannot_be_read_are_an_error_with_a_name(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        make_gallery(LatentCodec.load(whole_run), str(tmp_path / "nowhere"), [])


def test_pictures_that_nothing_compresses_stay_within_their_bytes() -> None:
    """Noise of the largest size: shown smaller, all of them, each with its measured values."""
    noise = np.random.default_rng(0).integers(0, 256, (3, LONGEST_SIDE, LONGEST_SIDE), dtype=np.uint8)
    row = ImageRow(key="a", values={"psnr": 5.0}, missing={"kid": "of a set"})
    latent = np.random.default_rng(0).standard_normal((20, 8, 8)).astype(np.float32)
    (choice,) = choose([row], "PSNR")
    one = [GalleryImage(choice, noise, noise[::-1].copy(), noise.shape[1:], latent, None)] * GALLERY_IMAGES
    album = make_album(Gallery(one, {}))
    assert len(album.images) == GALLERY_IMAGES
    total = sum(len(uri) for item in album.images for uri in (item.original, item.reconstruction, item.difference))
    assert ALBUM_BYTES / 4 < total <= ALBUM_BYTES
    assert album.images[0].width < LONGEST_SIDE and "of which the middle" in album.images[0].size
    back = Image.open(io.BytesIO(base64.b64decode(album.images[0].original.partition(",")[2])))
    start = (LONGEST_SIDE - album.images[0].width) // 2
    assert np.array_equal(np.asarray(back)[0, 0], noise[:, start, start])  # cut, not resized
    assert album.images[0].values == [("PSNR", "5 dB")] and album.images[0].missing == [("KID", "of a set")]
    assert len(album.latents[0].channels) == 16 and "Of 20 latent channels the first 16" in album.notes[-1]
