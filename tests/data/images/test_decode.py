"""Every rule of `ldm_vae/data/images/decode.py` against a computation of its own, on files made here."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps
from torch.nn import functional as F
from torchvision.transforms import v2

from ldm_vae.data.images import decode
from ldm_vae.data.images import depth as depth_module
from ldm_vae.data.images import tiff as tiff_module
from ldm_vae.data.images.decode import decode_image, encode_image
from ldm_vae.data.images.fit import ImageConfig, fit_image
from ldm_vae.data.images.pixels import BrokenImage, to_uint8
from ldm_vae.data.images.resize import FILTERS, resize_image, resized
from ldm_vae.errors import UserError
from ldm_vae.recipe import validate

pytestmark = pytest.mark.numerical

# One rounding of v / 127.5 - 1 in float32; the rules below are exact otherwise.
ROUNDING = 2e-7
# One step of 8 bits in [-1, 1]: where Pillow or littlecms rounds to 8 bits on the way and the formula does not.
STEP = 1 / 127.5


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def smooth(height: int, width: int, channels: int) -> np.ndarray:
    """(C, H, W) float32 in [-1, 1], with edges and gradients."""
    y, x = np.mgrid[0:height, 0:width] / 16.0
    planes = [np.sin(x * (1 + c / 3)) * np.cos(y) * 0.6 + np.sign(np.sin(y + c)) * 0.4 for c in range(channels)]
    return np.stack(planes).astype(np.float32)


def save(pixels: np.ndarray | Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, name, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def unit(pixels: np.ndarray, full: float = 255.0) -> np.ndarray:
    """(H, W, C) integers -> (C, H, W) in [-1, 1], in float64."""
    return pixels.transpose(2, 0, 1).astype(np.float64) / full * 2.0 - 1.0


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: float = ROUNDING) -> None:
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


# The common path


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_common_path_equals_torchvision(noise: np.ndarray, extension: str) -> None:
    data = save(noise, {"png": "PNG", "webp": "WEBP"}.get(extension, "JPEG"))
    reference = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    expected = reference(Image.open(io.BytesIO(data)).convert("RGB")).numpy()
    assert_near(decode_image(data, extension, 3), expected)


def test_real_photographs_equal_torchvision(test_data: Path) -> None:
    """Those without profile, rotation or other modes, which torchvision leaves as they are; the others decode."""
    plain = others = 0
    with tarfile.open(test_data / "data" / "imagenet160-original" / "000000.tar") as tar:
        for member in tar:
            if not member.name.endswith(".jpg"):
                continue
            file = tar.extractfile(member)
            assert file is not None
            data = file.read()
            actual = decode_image(data, "jpg", 3)
            image = Image.open(io.BytesIO(data))
            if "icc_profile" in image.info or image.getexif().get(0x0112, 1) != 1 or image.mode not in ("RGB", "L"):
                others += 1
                continue
            plain += 1
            expected = v2.functional.to_dtype(v2.functional.to_image(image.convert("RGB")), torch.float32, True)
            assert_near(actual, expected.numpy() * 2 - 1)
    assert plain + others == 40
    assert plain > 20


def test_content_wins_over_the_name(noise: np.ndarray) -> None:
    assert_near(decode_image(save(noise, "PNG"), "jpg", 3), unit(noise))


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (64, 64), (40, 300)])
def test_resize_and_crop_equal_torchvision_on_pictures(size: tuple[int, int]) -> None:
    image = Image.fromarray(((smooth(*size, 3) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0))
    config = ImageConfig(resize=96, crop=64, resize_filter="bicubic")
    expected = v2.CenterCrop(64)(v2.Resize(96, v2.InterpolationMode.BICUBIC)(image))
    actual = fit_image(decode_image(save(image, "PNG"), "png", 3), config, None)
    # Pillow rounds twice on 8-bit pictures, after the rows and after the columns; here nothing is rounded.
    assert_near(actual, unit(np.asarray(expected)), 1.5 * STEP)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (64, 64), (40, 300)])
def test_a_resize_that_rounds_equals_torchvision_on_pictures_bit_for_bit(size: tuple[int, int], mode: str) -> None:
    image = Image.fromarray(((smooth(*size, 3) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0))
    config = ImageConfig.model_validate({"resize": 96, "crop": 64, "resize_filter": mode, "resize_rounding": "8bit"})
    expected = v2.CenterCrop(64)(v2.Resize(96, v2.InterpolationMode(mode))(image))
    actual = fit_image(decode_image(save(image, "PNG"), "png", 3), config, None)
    assert np.array_equal(to_uint8(torch.from_numpy(actual)).numpy().transpose(1, 2, 0), np.asarray(expected))
    assert_near(actual, unit(np.asarray(expected)))


@pytest.mark.parametrize(
    ("height", "width", "target"), [(375, 500, (96, 128)), (341, 512, (96, 144)), (50, 33, (145, 96))]
)
def test_the_aliased_filter_takes_two_neighbours(height: int, width: int, target: tuple[int, int]) -> None:
    """By brute force, as OpenCV defines INTER_LINEAR: pixel i of n lies at (i + 1/2) N / n - 1/2. The long side is
    rounded to the nearest: 341 x 512 to 96 x 144.14, 50 x 33 to 145.45 x 96."""
    array = smooth(height, width, 2)

    def places(count: int, full: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = ((np.arange(count) + 0.5) * full / count - 0.5).clip(0, full - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, full - 1), at - low

    expected = array.astype(np.float64)
    low, high, part = places(target[0], height)
    expected = expected[:, low] * (1 - part)[:, None] + expected[:, high] * part[:, None]
    low, high, part = places(target[1], width)
    expected = expected[..., low] * (1 - part) + expected[..., high] * part
    actual = fit_image(array, ImageConfig(resize=96, resize_filter="bilinear_aliased"), None)
    assert actual.shape == (2, *target)
    tolerance = max(height, width) * np.finfo(np.float32).eps * 2  # torch places the neighbours in float32; range 2
    assert_near(actual, expected, float(tolerance))


def resize(array: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    return resize_image(array.transpose(1, 2, 0), 0, height, width, mode, "none")


@pytest.mark.parametrize("channels", [1, 4, 12])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(20, 31), (97, 61)])
def test_resize_of_any_channels_equals_torch_antialias(channels: int, mode: str, size: tuple[int, int]) -> None:
    array = smooth(64, 48, channels)
    # in float64: torch's float32 places the filter with an error of 2e-6
    expected = F.interpolate(torch.from_numpy(array)[None].double(), size, mode=mode, antialias=True)[0].clamp(-1, 1)
    assert_near(resize(array, *size, mode), expected.numpy(), 2 * ROUNDING)  # of rows, then of columns


def test_area_is_the_mean_and_lanczos_is_pillows() -> None:
    array = smooth(64, 48, 5)
    expected = array.astype(np.float64).reshape(5, 16, 4, 12, 4).mean(axis=(2, 4))
    assert_near(resize(array, 16, 12, "area"), expected, 1e-6)
    plane = np.asarray(Image.fromarray(array[3]).resize((12, 16), Image.Resampling.LANCZOS))
    assert_near(resize(array, 16, 12, "lanczos")[3], plane.clip(-1, 1))
    assert not np.allclose(resize(array, 16, 12, "lanczos"), expected, atol=1e-3)


def test_resize_clips_the_overshoot_of_bicubic() -> None:
    edge = np.ones((1, 32, 32), np.float32)
    edge[:, :, :16] = -1.0
    unclipped = np.asarray(Image.fromarray(edge[0]).resize((50, 50), FILTERS["bicubic"]))
    assert unclipped.max() > 1.01
    assert resize(edge, 50, 50, "bicubic").max() == 1.0


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600))
def test_resized_keeps_the_short_side(height: int, width: int, short: int) -> None:
    image = torch.empty(1, height, width, device="meta")
    expected = v2.functional.resize(image, [short], antialias=False).shape[1:]
    assert resized(height, width, short) == tuple(expected)


def test_random_choices_come_from_the_generator_alone() -> None:
    array = smooth(40, 50, 3)
    config = ImageConfig(crop=24, flip=True)
    cuts = []
    for seed in range(256):
        first = fit_image(array, config, np.random.default_rng(seed))
        np.random.random(3)  # the global generator plays no part
        np.testing.assert_array_equal(first, fit_image(array, config, np.random.default_rng(seed)))
        draw = np.random.default_rng(seed)
        flip, top, left = bool(draw.integers(2)), int(draw.integers(17)), int(draw.integers(27))
        expected = array[:, top : top + 24, left : left + 24]
        np.testing.assert_array_equal(first, expected[:, :, ::-1] if flip else expected)
        cuts.append((flip, top, left))
    assert {flip for flip, _, _ in cuts} == {False, True}
    assert {top for _, top, _ in cuts} == set(range(17))  # both ends are drawn
    assert {0, 26} <= {left for *_, left in cuts}


@pytest.mark.parametrize(("height", "width"), [(41, 50), (43, 51)], ids=["8.5 rows above", "9.5"])
def test_without_a_generator_the_centre_and_no_flip(height: int, width: int) -> None:
    array = smooth(height, width, 3)
    expected = v2.CenterCrop(24)(torch.from_numpy(array)).numpy()
    config = ImageConfig(crop=24, flip=True)
    np.testing.assert_array_equal(fit_image(array, config, None), expected)
    centre = ImageConfig(crop=24, crop_mode="center")
    np.testing.assert_array_equal(fit_image(array, centre, np.random.default_rng(3)), expected)


def test_smaller_than_the_crop_is_refused_by_size() -> None:
    with pytest.raises(BrokenImage, match="30x23 is smaller than the crop, 24 pixels"):
        fit_image(smooth(23, 30, 3), ImageConfig(crop=24), None)


def test_extreme_shape_is_refused_before_the_resize() -> None:
    strip = np.zeros((1, 1, 100_000), np.float32)
    with pytest.raises(BrokenImage, match="would become"):
        fit_image(strip, ImageConfig(channels=1, resize=256), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 256, "resize": 128}, "larger than the short side"),
        ({"crop": 0}, "greater than 0"),
        ({"resize_filter": "nearest"}, "bicubic"),
        ({"channels": 1000}, "256"),
    ],
)
def test_impossible_configs_are_user_errors(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(ImageConfig, values, "recipe")


# Orientation, profiles, CMYK, palettes, transparency, channels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_exif_orientation(noise: np.ndarray, name: str, extension: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(noise, name, exif=exif.tobytes(), lossless=True)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert expected.size == ((30, 24) if orientation < 5 else (24, 30))
    assert_near(decode_image(data, extension, 3), unit(np.asarray(expected.convert("RGB"))))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_of_tiff_and_16_bit_png(orientation: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    turned = np.rot90(pixels, {3: 2, 6: -1, 8: 1}[orientation])  # what EXIF 2.32 says of rows and columns
    data = tiff(pixels, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    assert_near(decode_image(data, "tiff", 3), unit(turned, 65535))
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    assert_near(decode_image(with_chunk(png16(pixels), b"eXIf", block), "png", 3), unit(turned, 65535))


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """The PNG with one more chunk, right after IHDR."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_malformed_exif_spoils_no_pixel(noise: np.ndarray) -> None:
    for block in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        data = save(noise, "PNG", exif=block)
        assert_near(decode_image(data, "png", 3), unit(noise))


def adobe_rgb_to_srgb(pixels: np.ndarray, full: float) -> np.ndarray:
    """From the published primaries (both D65), gamma 563/256 and IEC 61966-2-1; (H, W, 3) -> (C, H, W) in [-1, 1]."""

    def matrix(primaries: list[tuple[float, float]]) -> np.ndarray:
        columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
        white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * np.linalg.solve(columns, white)

    adobe = matrix([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)])
    srgb = matrix([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])
    linear = (pixels / full) ** (563 / 256) @ (np.linalg.inv(srgb) @ adobe).T
    linear = linear.clip(0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded.transpose(2, 0, 1) * 2.0 - 1.0


def muted(full: int, dtype: str) -> np.ndarray:
    """Colours that sRGB can show, so that clipping plays no part."""
    base = np.random.default_rng(2).uniform(0.2, 0.8, (16, 16, 1))
    tint = np.random.default_rng(3).uniform(-0.12, 0.12, (16, 16, 3))
    return ((base + tint) * full).round().astype(dtype)


def test_icc_profile_becomes_srgb_in_8_bits() -> None:
    profile = imagecodecs.cms_profile("adobergb")
    pixels = muted(255, "u1")
    expected = adobe_rgb_to_srgb(pixels, 255.0)
    assert np.abs(expected - unit(pixels)).max() > 10 * STEP  # the profile changes something
    for name, extension in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        data = save(pixels, name, icc_profile=profile, **({"lossless": True} if name == "WEBP" else {}))
        # half a step of rounding, and the tables of the profile, another
        assert_near(decode_image(data, extension, 3), expected, STEP)
    jpg = save(pixels, "JPEG", icc_profile=profile, quality=100, subsampling=0)
    decoded = np.asarray(Image.open(io.BytesIO(jpg)).convert("RGB"))
    assert_near(decode_image(jpg, "jpg", 3), adobe_rgb_to_srgb(decoded, 255.0), STEP)


def nearly_srgb(units: int) -> bytes:
    """The profile of sRGB, whose red primary lies by some 1/65536 further along X."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    place = profile.index(b"XYZ \0\0\0\0", profile.index(b"XYZ \0\0\0\0", 132) + 1) + 8  # after the white point
    red = int.from_bytes(profile[place : place + 4], "big") + units
    return profile[:place] + red.to_bytes(4, "big") + profile[place + 4 :]


@pytest.mark.parametrize(("units", "applied"), [(0, False), (22, False), (60, True)])
def test_a_profile_that_is_srgb_changes_no_level(units: int, applied: bool) -> None:
    """littlecms's transform would, here and there: it is not asked where it would only round."""
    steps = np.arange(0, 256, 3, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 86, 3)
    profile = nearly_srgb(units)
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, "RGB", "RGB")
    transformed = np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform))
    assert np.array_equal(transformed, pixels) == (units == 0)
    found = to_uint8(torch.from_numpy(decode_image(save(pixels, "PNG", icc_profile=profile), "png", 3)))
    assert np.array_equal(found.numpy().transpose(1, 2, 0), transformed if applied else pixels)


def test_icc_profile_becomes_srgb_in_16_bits() -> None:
    profile = imagecodecs.cms_profile("adobergb")
    pixels = muted(65535, "u2")
    expected = adobe_rgb_to_srgb(pixels, 65535.0)
    tolerance = STEP / 16  # far below a step of 8 bits: nothing was cut down on the way
    assert_near(decode_image(tiff(pixels, photometric="rgb", iccprofile=profile), "tif", 3), expected, tolerance)
    chunk = b"icc\0\0" + zlib.compress(profile)
    png = with_chunk(png16(pixels), b"iCCP", chunk)
    assert_near(decode_image(png, "png", 3), expected, tolerance)


def test_grey_profile() -> None:
    """Linear grey -> the sRGB curve, for one channel and for three."""
    profile = imagecodecs.cms_profile("gray", gamma=1.0)
    grey = np.arange(16, 256, dtype=np.uint8).reshape(12, 20)
    linear = grey / 255.0
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)[None] * 2 - 1
    data = save(grey, "PNG", icc_profile=profile)
    # an 8-bit table of a curve this steep in the dark is good to two steps
    assert_near(decode_image(data, "png", 1), expected, 2 * STEP)
    assert_near(decode_image(data, "png", 3), np.repeat(expected, 3, axis=0), 2 * STEP)
    deep = with_chunk(png16(grey.astype(np.uint16) * 257), b"iCCP", b"g\0\0" + zlib.compress(profile))
    assert_near(decode_image(deep, "png", 1), expected, STEP)


def test_profiles_that_do_not_open_or_do_not_fit_are_ignored(noise: np.ndarray) -> None:
    grey_profile = imagecodecs.cms_profile("gray", gamma=1.0)
    for profile in (b"no profile at all", grey_profile):
        assert_near(decode_image(save(noise, "PNG", icc_profile=profile), "png", 3), unit(noise))
        deep = noise.astype(np.uint16) * 257
        data = tiff(deep, photometric="rgb", iccprofile=profile)
        assert_near(decode_image(data, "tif", 3), unit(noise))


def cmyk_profile() -> bytes:
    """A CMYK output profile made here: two-point table to Lab, L = 100 (1 - (C + M + Y + 3 K) / 6), a = b = 0.

    Linear, so that every way of interpolating between the corners of the table gives the same.
    """
    table = bytearray()
    for corner in range(16):
        c, m, y, k = ((corner >> shift) & 1 for shift in (3, 2, 1, 0))
        lightness = 1 - (c + m + y + 3 * k) / 6
        table += bytes([round(255 * lightness), 128, 128])
    ramp = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    lut += bytes(-len(lut) % 4)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)  # D50
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"cmyk\0" + bytes(78)
    text += bytes(-len(text) % 4)
    start = 128 + 4 + 3 * 12
    tags, body = b"", b""
    for name, content in ((b"desc", text), (b"wtpt", white), (b"A2B0", lut)):
        tags += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = bytearray(128)
    header[8:12] = bytes([2, 0x20, 0, 0])
    header[12:24] = b"prtrCMYKLab "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    profile = bytes(header) + struct.pack(">I", 3) + tags + body
    return struct.pack(">I", len(profile)) + profile[4:]


def test_cmyk_without_and_with_a_profile() -> None:
    inks = np.random.default_rng(4).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    image = Image.frombytes("CMYK", (16, 16), inks.tobytes())
    plain = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255.0
    data = save(image, "TIFF")
    assert_near(decode_image(data, "tif", 3), unit(plain), 1.01 * STEP)  # Pillow rounds the product in integers
    jpg = save(image, "JPEG", quality=100)
    stored = np.asarray(Image.open(io.BytesIO(jpg)))
    assert stored.shape == (16, 16, 4)
    plain = (255.0 - stored[..., :3]) * (255.0 - stored[..., 3:]) / 255.0
    assert_near(decode_image(jpg, "jpg", 3), unit(plain), 1.01 * STEP)

    c, m, y, k = (inks[..., i] / 255.0 for i in range(4))
    lightness = 100.0 * (1 - (c + m + y + 3 * k) / 6)
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    grey = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    data = save(image, "TIFF", icc_profile=cmyk_profile())
    actual = decode_image(data, "tif", 3)
    # the table holds L in steps of 100/255, and the result is rounded again
    assert_near(actual, np.repeat(grey[None] * 2 - 1, 3, axis=0), 2 * STEP)
    assert np.abs(actual - unit(plain)).mean() > 10 * STEP  # the naive formula is far away


def test_palette_with_and_without_transparency() -> None:
    colours = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 250]], np.uint8)
    index = np.random.default_rng(5).integers(0, 3, (9, 11), dtype=np.uint8)
    image = Image.frombytes("P", (11, 9), index.tobytes())
    image.putpalette(colours.tobytes())
    assert_near(decode_image(save(image, "PNG"), "png", 3), unit(colours[index]))
    assert_near(decode_image(save(image, "TIFF"), "tif", 3), unit(colours[index]))
    alpha = np.array([255, 128, 0])[index][..., None] / 255.0
    expected = colours[index] * alpha + 255.0 * (1 - alpha)
    data = save(image, "PNG", transparency=bytes([255, 128, 0]))
    assert_near(decode_image(data, "png", 3), unit(expected), STEP)


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_alpha_over_white_and_kept_with_four_channels(noise: np.ndarray, extension: str) -> None:
    alpha = np.random.default_rng(6).integers(0, 256, (24, 30, 1), dtype=np.uint8)
    rgba = np.concatenate([noise, alpha], axis=2)
    data = save(rgba, extension.upper(), **({"lossless": True, "exact": True} if extension == "webp" else {}))
    over_white = noise * (alpha / 255.0) + 255.0 * (1 - alpha / 255.0)
    assert_near(decode_image(data, extension, 3), unit(over_white), STEP)
    assert_near(decode_image(data, extension, 4), unit(rgba))
    grey = (over_white @ np.array([0.299, 0.587, 0.114]))[..., None]
    assert_near(decode_image(data, extension, 1), unit(grey), 2 * STEP)


@pytest.mark.parametrize("extension", ["png", "webp", "tif", "16-bit png", "16-bit tif", "float tif"])
@pytest.mark.parametrize("grey", [False, True])
def test_opaque_pictures_among_four_channels_have_full_alpha(noise: np.ndarray, extension: str, grey: bool) -> None:
    if grey and "tif" in extension:
        with pytest.raises(BrokenImage, match="1 channels where 4 are wanted"):
            decode_image(tiff(noise[..., 0]), "tif", 4)
        return
    picture = np.ascontiguousarray(noise[..., 0]) if grey else noise
    values = unit(np.broadcast_to(picture[..., None], noise.shape) if grey else picture)
    match extension:
        case "16-bit png":
            data = png16(picture.astype(np.uint16) * 257)
        case "16-bit tif":
            data = tiff(picture.astype(np.uint16) * 257, photometric="rgb")
        case "float tif":
            data = tiff(np.ascontiguousarray(values.transpose(1, 2, 0)).astype(np.float32), photometric="rgb")
        case "tif":
            data = tiff(picture, photometric="rgb")
        case _:
            data = save(picture, extension.upper(), **({"lossless": True} if extension == "webp" else {}))
    decoded = decode_image(data, extension.split()[-1], 4)
    assert_near(decoded, np.concatenate([values, np.ones_like(values[:1])]))


def test_grey_alpha_colour_key_and_one_bit(noise: np.ndarray) -> None:
    grey, alpha = noise[..., :1], noise[..., 1:2]
    data = save(np.concatenate([grey, alpha], axis=2), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "LA"
    expected = grey * (alpha / 255.0) + 255.0 * (1 - alpha / 255.0)
    assert_near(decode_image(data, "png", 1), unit(expected), STEP)
    assert_near(decode_image(data, "png", 3), np.repeat(unit(expected), 3, axis=0), STEP)
    keyed = save(noise, "PNG", transparency=tuple(int(v) for v in noise[3, 4]))
    decoded = decode_image(keyed, "png", 3)
    assert decoded[:, 3, 4].tolist() == [1.0, 1.0, 1.0]
    bits = save(Image.fromarray(noise[..., 0] > 128), "PNG")
    assert_near(decode_image(bits, "png", 1), np.where(noise[..., 0] > 128, 1.0, -1.0)[None])


def test_grey_to_colour_and_back(noise: np.ndarray) -> None:
    grey = save(noise[..., 0], "PNG")
    assert_near(decode_image(grey, "png", 3), np.repeat(unit(noise[..., :1]), 3, axis=0))
    weighted = (noise @ np.array([0.299, 0.587, 0.114]))[..., None]
    assert_near(decode_image(save(noise, "PNG"), "png", 1), unit(weighted), 0.51 * STEP)  # Pillow rounds to 8 bits


@pytest.mark.parametrize("channels", [2, 12])
def test_other_channel_counts_are_refused_for_photographs(noise: np.ndarray, channels: int) -> None:
    for name, extension in (("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tif")):
        with pytest.raises(BrokenImage, match=f"{channels}.*wanted"):
            decode_image(save(noise, name), extension, channels)


# 16 bit, TIFF, arrays


def deep(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def png16(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


@pytest.mark.parametrize(("encode", "extension"), [(png16, "png"), (tiff, "tiff")])
def test_16_bit_full_range(encode: Callable[[np.ndarray], bytes], extension: str) -> None:
    pixels = deep(13, 9, 3)
    pixels[0, :2] = [[0, 1, 65535], [32767, 32768, 258]]
    data = encode(pixels)
    actual = decode_image(data, extension, 3)
    assert_near(actual, unit(pixels, 65535))
    assert len(np.unique(actual)) > 256  # more than 8 bits came through
    grey = encode(pixels[..., 0])
    assert_near(decode_image(grey, extension, 1), unit(pixels[..., :1], 65535))
    assert_near(decode_image(grey, extension, 3), np.repeat(unit(pixels[..., :1], 65535), 3, axis=0))
    weighted = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]
    assert_near(decode_image(data, extension, 1), unit(weighted, 65535))


def test_16_bit_transparency() -> None:
    rgba = deep(8, 8, 4)
    share = rgba[..., 3:] / 65535.0
    expected = unit(rgba[..., :3] * share + 65535.0 * (1 - share), 65535)
    png, tif = png16(rgba), tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    for data, extension in ((png, "png"), (tif, "tif")):
        assert_near(decode_image(data, extension, 3), expected)
        assert_near(decode_image(data, extension, 4), unit(rgba, 65535))
    grey = png16(rgba[..., 2:])
    expected = unit(rgba[..., 2:3] * share + 65535.0 * (1 - share), 65535)
    assert_near(decode_image(grey, "png", 1), expected)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_twelve_channels(planar: str, dtype: str, compression: str | None) -> None:
    values = smooth(20, 17, 12)
    full = {"u1": 255.0, "u2": 65535.0, "f4": None}[dtype]
    planes = values if full is None else ((values + 1) / 2 * full).round().astype(dtype)
    layout = planes if planar == "separate" else planes.transpose(1, 2, 0)
    data = tiff(np.ascontiguousarray(layout), photometric="minisblack", planarconfig=planar, compression=compression)
    assert_near(decode_image(data, "tiff", 12), values if full is None else planes / full * 2.0 - 1.0)
    with pytest.raises(BrokenImage, match="12 channels where 3 are wanted"):
        decode_image(data, "tiff", 3)


def test_tiff_pages_are_channels_only_if_their_number_is_right() -> None:
    planes = deep(10, 8, 5).transpose(2, 0, 1)
    data = tiff(np.ascontiguousarray(planes), photometric="minisblack")
    assert_near(decode_image(data, "tif", 5), planes / 65535.0 * 2 - 1)
    assert_near(decode_image(data, "tif", 1), planes[:1] / 65535.0 * 2 - 1)
    assert_near(decode_image(data, "tif", 3), np.repeat(planes[:1] / 65535.0 * 2 - 1, 3, axis=0))
    with pytest.raises(BrokenImage, match="1 channels where 12 are wanted"):
        decode_image(data, "tif", 12)


def test_tiff_white_is_zero_and_jpeg_inside(noise: np.ndarray) -> None:
    white = tiff(noise[..., 0], photometric="miniswhite")
    assert_near(decode_image(white, "tif", 1), unit(255 - noise[..., :1]))
    picture = ((smooth(32, 32, 3) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    inside = tiff(np.ascontiguousarray(picture), photometric="rgb", compression="jpeg", compressionargs={"level": 98})
    assert np.abs(decode_image(inside, "tif", 3) - unit(picture)).mean() < 5 * STEP  # lossy, and of the right colours


def test_circular_tiff_pages_end() -> None:
    """A chain of pages that runs in a circle past page 100, where tifffile alone would collect offsets for ever."""
    chain = bytearray(b"II*\0" + struct.pack("<I", 8))
    size = 2 + 4 * 12 + 4
    for page in range(150):
        tags = [(256, 4, 1, 2), (257, 4, 1, 2), (258, 3, 1, 8), (262, 3, 1, 1)]
        following = 8 + size * (page + 1) if page < 149 else 8 + size * 120
        chain += struct.pack("<H", 4) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        chain += struct.pack("<I", following)
    with pytest.raises(BrokenImage):
        decode_image(bytes(chain), "tif", 200)


@pytest.mark.parametrize(
    ("dtype", "full"), [("u1", 255.0), ("u2", 65535.0), (">u2", 65535.0), ("f2", None), ("f4", None), ("f8", None)]
)
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_npy_types_and_layouts(dtype: str, full: float | None, channels: int) -> None:
    values = smooth(14, 18, channels)
    planes = values.astype(dtype) if full is None else ((values + 1) / 2 * full).round().astype(dtype)
    expected = planes.astype(np.float64) if full is None else planes / full * 2.0 - 1.0
    assert_near(decode_image(npy(planes), "npy", channels), expected)
    assert_near(decode_image(npy(planes.transpose(1, 2, 0)), "npy", channels), expected)
    assert_near(decode_image(npy(np.ascontiguousarray(planes.transpose(1, 2, 0))), "npy", channels), expected)
    if channels == 1:
        assert_near(decode_image(npy(planes[0]), "npy", 1), expected)


def test_npy_that_could_be_both_layouts_is_planes_first() -> None:
    array = smooth(5, 3, 3)  # (3, 5, 3)
    assert_near(decode_image(npy(array), "npy", 3), array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 8, 8), np.int16), "int16"),
        (np.zeros((3, 8, 8), bool), "bool"),
        (np.zeros((3, 8, 8), np.uint32), "uint32"),
        (np.zeros((3, 8, 8), np.complex64), "complex64"),
        (np.full((3, 8, 8), 255.0, np.float32), "from 255 to 255"),
        (np.full((3, 8, 8), -1.002, np.float32), r"\[-1, 1\]"),
        (np.full((3, 8, 8), np.nan, np.float32), "finite"),
        (np.full((3, 8, 8), np.inf, np.float16), "finite"),
        (np.zeros((4, 8, 8), np.uint8), "neither"),
        (np.zeros((8, 8), np.uint8), "neither"),
        (np.zeros((1, 3, 8, 8), np.uint8), "neither"),
        (np.zeros((3, 0, 8), np.uint8), "no pixels"),
        (np.array([{"a": 1}, None, 2], dtype=object), "unpickled"),
    ],
)
def test_npy_that_is_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(BrokenImage, match=reason):
        decode_image(npy(array), "npy", 3)


def test_floats_a_rounding_past_one_are_clipped() -> None:
    assert decode_image(npy(np.full((3, 4, 4), 1.0005, np.float32)), "npy", 3).max() == 1.0


# Broken and hostile files


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    image = save(Image.new("RGB", (1, 1)), "PNG")
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return image[:12] + content + struct.pack(">I", zlib.crc32(content)) + image[33:]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("depth", [8, 16])
def test_bombs_are_refused_by_their_header(depth: int) -> None:
    for width, height in ((12_000, 12_000), (60_000, 60_000), (2**31 - 1, 1)):
        with pytest.raises(BrokenImage, match="limit"):
            decode_image(png_header(width, height, depth), "png", 3)


def test_array_and_tiff_bombs_take_no_memory() -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (3, 40000, 40000)})
    short = io.BytesIO()
    np.lib.format.write_array_header_1_0(short, {"descr": "<f8", "fortran_order": False, "shape": (3, 9000, 9000)})
    wide = io.BytesIO()
    np.lib.format.write_array_header_1_0(wide, {"descr": "|u1", "fortran_order": False, "shape": (4, 4, 10**9)})
    small = tiff(np.zeros((16, 16), np.uint16))
    tag = small.index(struct.pack("<HHI", 256, 4, 1))
    bomb = small[: tag + 8] + struct.pack("<I", 2**28) + small[tag + 12 :]
    tracemalloc.start()
    for data, extension, channels in (
        (header.getvalue(), "npy", 3),
        (short.getvalue(), "npy", 3),
        (wide.getvalue(), "npy", 4),
        (bomb, "tif", 1),
    ):
        with pytest.raises(BrokenImage, match=r"limit|truncated"):
            decode_image(data, extension, channels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # of the gigabytes that the headers claim


def test_deep_npy_header_is_refused() -> None:
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + b"(" * 4000 + b")" * 4000 + b"}\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    with pytest.raises(BrokenImage):
        decode_image(data, "npy", 3)


def samples() -> dict[str, bytes]:
    picture = ((smooth(40, 40, 3) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    wide = (picture.astype(np.uint16) * 257) ^ np.arange(40, dtype=np.uint16)[:, None, None]
    return {
        "jpg": save(picture, "JPEG"),
        "png": save(picture, "PNG"),
        "webp": save(picture, "WEBP"),
        "tif": tiff(np.ascontiguousarray(picture), photometric="rgb", compression="zlib"),
        "tiff": tiff(np.ascontiguousarray(wide), photometric="rgb"),
        "npy": npy(smooth(40, 40, 3)),
        "PNG": png16(wide),
    }


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "tiff", "npy", "PNG"])
def test_truncated_files_are_broken_with_a_reason(extension: str) -> None:
    data = samples()[extension]
    assert decode_image(data, extension, 3).shape == (3, 40, 40)
    for share in (0.0, 0.02, 0.3, 0.6, 0.9):
        with pytest.raises(BrokenImage) as caught:
            decode_image(data[: int(len(data) * share)], extension, 3)
        assert caught.value.reason
        assert "\n" not in caught.value.reason


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "tiff", "npy", "PNG"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore")  # decoders warn about many of these
def test_damaged_bytes_give_pixels_or_broken_image(extension: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(samples()[extension])
    for place, value in changes:
        data[int(place * min(len(data), 600))] = value
    try:
        image = decode_image(bytes(data), extension, 3)
    except BrokenImage:
        return
    assert image.dtype == np.float32
    assert np.abs(image).max() <= 1.0


@pytest.mark.parametrize(
    ("extension", "module", "name"),
    [
        ("jpg", decode, "unit_planes"),
        ("jpg", decode, "from_pillow"),
        ("png", decode, "full_scale"),
        ("npy", decode, "check_size"),
        ("tif", tiff_module, "mix"),
        ("tiff", tiff_module, "_pixels"),
        ("PNG", depth_module, "three_axes"),
    ],
)
@pytest.mark.parametrize("error", [TypeError("a bug of ours"), MemoryError()], ids=["a bug", "no memory"])
def test_an_error_of_ours_is_not_a_broken_image(
    monkeypatch: pytest.MonkeyPatch, extension: str, module: ModuleType, name: str, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(type(error)):
        decode_image(samples()[extension], extension, 3)


def test_a_decoder_that_runs_out_of_memory_is_not_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    for extension, owner, name in (
        ("jpg", ImageFile.ImageFile, "load"),
        ("npy", np, "load"),
        ("tif", tifffile.TiffPage, "asarray"),
        ("PNG", imagecodecs, "png_decode"),
    ):
        data = samples()[extension]
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(MemoryError):
                decode_image(data, extension, 3)


def test_malformed_tags_spoil_no_pixel(noise: np.ndarray) -> None:
    """An orientation of many numbers and a profile that is text count as missing."""
    orientation, profile = (274, "H", 600, (6,) * 600, True), (34675, "s", 0, "no profile", True)
    data = tiff(noise, photometric="rgb", extratags=[orientation, profile])
    np.testing.assert_array_equal(decode_image(data, "tif", 3), decode_image(tiff(noise, photometric="rgb"), "tif", 3))


def test_unknown_extensions_are_named() -> None:
    with pytest.raises(BrokenImage, match="'gif'"):
        decode_image(b"GIF89a", "gif", 3)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ldm_vae.data.images.tiff", raising=False)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r'tifffile.*pip install "ldm-vae\[raster\]"'):
        decode_image(tiff(np.zeros((4, 4), np.uint8)), "tif", 1)


# Writing


def test_every_8_bit_value_survives() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    unit_values = torch.from_numpy(decode_image(npy(values.numpy().reshape(1, 16, 16)), "npy", 1))
    assert torch.equal(to_uint8(unit_values).flatten(), values)


def test_to_uint8_clamps_rounds_and_upcasts() -> None:
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]  # 127.5 to even
    half = torch.linspace(-1, 1, 1000).bfloat16()
    expected = ((half.double() + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(to_uint8(half), expected)
    assert to_uint8(torch.zeros(2, 3, 4, 5, dtype=torch.float64)).shape == (2, 3, 4, 5)


@pytest.mark.parametrize(("extension", "channels"), [("png", 1), ("png", 3), ("png", 4), ("webp", 3), ("npy", 12)])
def test_lossless_round_trip(extension: str, channels: int) -> None:
    array = smooth(24, 20, channels)
    decoded = decode_image(encode_image(array, extension), extension, channels)
    assert_near(decoded, array, 0.0 if extension == "npy" else 0.5 * STEP + ROUNDING)


def test_jpeg_is_close() -> None:
    array = smooth(64, 64, 1)
    for extension in ("jpg", "jpeg"):
        assert np.abs(decode_image(encode_image(array, extension), extension, 1) - array).mean() < 4 * STEP


def test_formats_that_cannot_hold_it_are_user_errors() -> None:
    for extension, channels in (("jpg", 4), ("png", 12), ("gif", 3), ("webp", 2)):
        with pytest.raises(UserError, match=f"a {extension} file of {channels} channels"):
            encode_image(smooth(8, 8, channels), extension)
