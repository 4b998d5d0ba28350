"""Pictures prepared in little time, against the plain way: all pixels become floats, a whole resize, then the cut."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm_vae.data.images.decode import decode_image, open_picture
from ldm_vae.data.images.fit import ImageConfig, fit_image
from ldm_vae.data.images.pixels import PixelArray
from ldm_vae.data.images.prepare import prepare_image
from ldm_vae.data.images.resize import resized
from tests.conftest import npy, picture

pytestmark = pytest.mark.numerical

MODES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
HEIGHT, WIDTH = 87, 120


def plain(data: bytes, extension: str, config: ImageConfig, seed: int | None) -> PixelArray:
    """By brute force, (C, h, w) float32: the whole picture, resized as a whole with Pillow alone, cut and flipped."""
    array = decode_image(data, extension, config.channels)
    draw = None if seed is None else np.random.default_rng(seed)
    flip = config.flip and draw is not None and bool(draw.integers(2))
    if config.resize is not None:
        height, width = resized(array.shape[1], array.shape[2], config.resize)
        if array.shape[1:] != (height, width):
            planes = []
            for plane in array:
                levels = ((plane + 1) * 127.5).round().astype(np.uint8) if config.resize_rounding == "8bit" else plane
                planes.append(np.asarray(Image.fromarray(levels).resize((width, height), MODES[config.resize_filter])))
            array = np.stack(planes)
            if config.resize_rounding == "8bit":
                array = array / np.float32(127.5) - np.float32(1.0)
            array = array.clip(-1.0, 1.0)
    if config.crop is not None:
        rows, columns = array.shape[1] - config.crop, array.shape[2] - config.crop
        top, left = round(rows / 2), round(columns / 2)
        if draw is not None:
            top, left = int(draw.integers(rows + 1)), int(draw.integers(columns + 1))
        array = array[:, top : top + config.crop, left : left + config.crop]
    return np.ascontiguousarray(array[:, :, ::-1] if flip else array)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files() -> dict[str, bytes]:
    """Name with extension -> file: all kinds of pixels, colours and orientation that a decoder treats differently."""
    image = picture(0, (WIDTH, HEIGHT))
    alpha = image.convert("RGBA")
    alpha.putalpha(picture(1, (WIDTH, HEIGHT)).convert("L"))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    key = image.quantize(40)
    exif = Image.Exif()
    found = {
        "rgb.jpg": saved(image, "JPEG", quality=95),
        "grey.jpg": saved(image.convert("L"), "JPEG"),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "misfit_profile.jpg": saved(image, "JPEG", icc_profile=profile),
        "profile.png": saved(
            image, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        ),
        "alpha.png": saved(alpha, "PNG"),
        "palette.png": saved(key, "PNG", transparency=3),
        "one_bit.png": saved(image.convert("1"), "PNG"),
        "deep.png": saved(
            Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 6), "PNG"
        ),
        "alpha.webp": saved(alpha, "WEBP", lossless=True),
        "levels.npy": npy(np.asarray(image)),
        "deep.npy": npy(np.asarray(image).astype(np.uint16) * 257),
        "floats.npy": npy(np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 128 - 1),
        "rgb.tif": saved(image, "TIFF"),
    }
    for orientation in (3, 6, 7):
        exif[0x0112] = orientation
        found[f"turned_{orientation}.jpg"] = saved(image, "JPEG", exif=exif)
        found[f"turned_{orientation}.png"] = saved(image, "PNG", exif=exif)
    return found


FILES = files()
STAYS: list[dict[str, Any]] = [dict(), dict(crop=40), dict(crop=40, flip=True), dict(resize=HEIGHT, crop=64, flip=True)]
RESIZES: list[dict[str, Any]] = [
    dict(resize=48, crop=32, flip=True),
    dict(resize=48, crop=48),
    dict(resize=48),
    dict(resize=131, crop=64),  # enlarged
    dict(resize=48, crop=32, resize_filter="bilinear"),
]


@pytest.mark.parametrize("name", FILES)
def test_what_stays_as_large_is_the_same_bit_for_bit(name: str) -> None:
    for options, channels, seed in itertools.product(STAYS, (1, 3, 4), (None, 0, 1, 2)):
        config = ImageConfig.model_validate({"channels": channels, **options})
        extension = name.rpartition(".")[2]
        if extension == "npy" and channels != 3:
            continue
        prepared = prepare_image(FILES[name], extension, config, None if seed is None else np.random.default_rng(seed))
        assert np.array_equal(prepared.floats(), plain(FILES[name], extension, config, seed)), (options, channels, seed)
        assert prepared.pixels.flags["C_CONTIGUOUS"]
        if extension != "tif" and "deep" not in name and "floats" not in name:
            assert prepared.pixels.dtype == np.uint8  # a quarter of the bytes on the way to the trainer


# Sums of float32: some 25 products of rows and of columns, whose sizes add up to less than 2. Pillow sums doubles.
SUMS = 2 * 25 * 2.0**-24


@pytest.mark.parametrize("name", FILES)
def test_without_a_generator_a_resize_is_pillows(name: str) -> None:
    """As validation and evaluation read pictures: to the rounding of sums, and bit for bit where 8 bits are wanted."""
    for options, rounding in itertools.product(RESIZES, ("none", "8bit")):
        config = ImageConfig.model_validate({**options, "resize_rounding": rounding, "jpeg_scaling": True})
        extension = name.rpartition(".")[2]
        found = prepare_image(FILES[name], extension, config, None).floats()
        expected = plain(FILES[name], extension, config, None)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= (0 if rounding == "8bit" else SUMS), options
        decoded = fit_image(decode_image(FILES[name], extension, 3), config, None)
        assert np.array_equal(found, decoded), options


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rounding", ["none", "8bit"])
def test_a_part_that_is_resized_alone_differs_by_rounding(name: str, rounding: str) -> None:
    """Of 8 bits, Pillow rounds the ends of the box to float32: a level where that changes a rounding of the rows, and
    one of the columns."""
    extension = name.rpartition(".")[2]
    tolerance = 2 / 127.5 if rounding == "8bit" else SUMS
    for options, seed in itertools.product(RESIZES, range(4)):
        config = ImageConfig.model_validate({**options, "resize_rounding": rounding})
        found = prepare_image(FILES[name], extension, config, np.random.default_rng(seed)).floats()
        expected = plain(FILES[name], extension, config, seed)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance + 1e-7, (options, seed)
        if rounding == "8bit":
            # Halfway between two pixels the weights are sixteenths: one value in 16 lies between two levels, twice.
            assert np.mean(found != expected) < 1 / 8


def test_draws_are_those_of_the_plain_way() -> None:
    """Positions that differ are seen at once: the picture is its own coordinates."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    data = npy(np.stack([rows, columns, rows], axis=2))
    config = ImageConfig(crop=24, flip=True)
    seen = set()
    for seed in range(100):
        draw = np.random.default_rng(seed)
        flip, top, left = int(draw.integers(2)), int(draw.integers(HEIGHT - 23)), int(draw.integers(WIDTH - 23))
        pixels = prepare_image(data, "npy", config, np.random.default_rng(seed)).pixels
        assert pixels[0, 0, 0] == top and pixels[1, 0, 23 if flip else 0] == left
        seen.add(flip)
    assert seen == {0, 1}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("resize", "fraction"), [(40, 2), (20, 4), (10, 8), (44, 1)])
def test_a_scaled_jpeg_is_decoded_at_a_fraction_and_keeps_its_place(
    resize: int, fraction: int, orientation: int
) -> None:
    """A ramp over the whole picture, whose sides no fraction divides: it would be off by up to 1 / 87 of its range
    where the last, incomplete row or column counted as a whole one."""
    height, width = HEIGHT, WIDTH + 1
    ramp = np.add.outer(np.linspace(0, 128, height), np.linspace(0, 127, width)).round().astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(ramp).convert("RGB"), "JPEG", quality=100, exif=exif)
    config = ImageConfig(resize=resize, jpeg_scaling=True)
    exact = prepare_image(data, "jpg", config, None).floats()
    with open_picture(data, "jpg", 3) as opened:
        size = (opened.height, opened.width)
        assert size == ((width, height) if orientation == 6 else (height, width))
        assert opened.shrink(*exact.shape[1:]) == (size[0] / fraction, size[1] / fraction)
        pixels, _ = opened.read(slice(0, -(-size[0] // fraction)), slice(0, -(-size[1] // fraction)))
        assert pixels.shape[:2] == (-(-size[0] // fraction), -(-size[1] // fraction))
    found = prepare_image(data, "jpg", config, np.random.default_rng(0)).floats()
    assert found.shape == exact.shape
    inner = (slice(None), slice(2, -2), slice(2, -2))  # the filters differ at the edges
    assert np.abs(found - exact)[inner].max() < 0.5 * 2 / 87 + 2 / 127.5  # and two levels that JPEG rounds


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_scaling_changes_no_other_file(kind: str) -> None:
    data = saved(picture(0, (WIDTH, HEIGHT)), kind, **({"lossless": True} if kind == "WEBP" else {}))
    plainly, scaled = (
        prepare_image(data, kind.lower(), ImageConfig(resize=20, jpeg_scaling=scaling), np.random.default_rng(0)).pixels
        for scaling in (False, True)
    )
    assert np.array_equal(plainly, scaled)
