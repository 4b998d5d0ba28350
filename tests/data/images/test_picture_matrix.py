"""Pictures of every mode, depth, compression, orientation and profile, against what was written and two other decoders.

What was written is known, because `files.py` writes the bytes itself: values are computed here, by the formulas. The
other two are Pillow and libtiff (in imagecodecs; libpng for PNG), where they read a file at all and the question is not
one of profile or transparency. `pytest -m slow -s tests/data/images/test_picture_matrix.py` prints the table.
"""

from __future__ import annotations

import io
import itertools
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.pixels import BrokenImage
from tests.data.images.files import (
    CMYK,
    COMPRESSIONS,
    GREY,
    GREY_WHITE,
    LAB,
    PALETTE,
    RGB,
    YCBCR,
    chunk,
    write_png,
    write_tiff,
)

pytestmark = pytest.mark.numerical

STEP = 1 / 127.5  # one step of 8 bits
EXACT = 3e-7  # one rounding to float32, where the formula is evaluated in float64
STRAIGHT, PREMULTIPLIED = 2, 1
HEIGHT, WIDTH = 6, 10


@dataclass
class Picture:
    """A file, what is right, and how near a decoder must come."""

    row: str
    data: bytes
    extension: str
    expected: np.ndarray
    tolerance: float
    others: tuple[str, ...]
    """The decoders that promise the same: they apply no profile, and lay nothing over white."""


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixel by pixel, as EXIF 2.32 describes where row 0 and column 0 are."""
    h, w = pixels.shape[:2]
    out = np.empty((h, w, 3) if orientation < 5 else (w, h, 3))
    for r, c in itertools.product(range(h), range(w)):
        down, left = h - 1 - r, w - 1 - c
        places = ((r, c), (r, left), (down, left), (down, c), (c, r), (c, down), (left, down), (left, r))
        out[places[orientation - 1]] = pixels[r, c]
    return out


def srgb_curve(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055)


def expect(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 1 or 3) in [0, 1] -> (3, h, w) in [-1, 1]."""
    return upright(np.broadcast_to(values, (*values.shape[:2], 3)), orientation).transpose(2, 0, 1) * 2 - 1


def draw(bits: int, samples: int) -> np.ndarray:
    drawn = np.random.default_rng(bits * 10 + samples).integers(0, 2**bits, (HEIGHT, WIDTH, samples))
    drawn[0, 0], drawn[0, 1] = 0, 2**bits - 1
    return drawn.astype(np.uint8 if bits <= 8 else np.uint16)


def tiffs(compressions: tuple[str, ...], orientations: tuple[int, ...]) -> Iterator[Picture]:
    linear = imagecodecs.cms_profile("gray", gamma=1.0)
    for compression, turn in itertools.product(compressions, orientations):
        options: dict[str, Any] = {"compression": compression, "orientation": turn}

        def picture(
            row: str, data: bytes, values: np.ndarray, near: float = EXACT, compare: bool = True, turn: int = turn
        ) -> Picture:
            others = ("Pillow", "libtiff") if turn == 1 else ("Pillow",)  # libtiff leaves it to its caller
            return Picture(row, data, "tif", expect(values, turn), near, others if compare else ())

        for bits in range(1, 17):
            grey, full = draw(bits, 1), 2**bits - 1
            yield picture("grey, 0 is black", write_tiff(grey, bits, GREY, **options), grey / full)
            yield picture("grey, 0 is white", write_tiff(grey, bits, GREY_WHITE, **options), 1 - grey / full)
            colour = draw(bits, 3)
            yield picture("RGB", write_tiff(colour, bits, RGB, **options), colour / full)
            lit = np.maximum(grey, full // 16)  # darker, the curve is too steep for an 8-bit table
            data = write_tiff(lit, bits, GREY, profile=linear, **options)
            yield picture("grey, profile", data, srgb_curve(lit / full), 2.01 * STEP, compare=False)  # of that table
            if bits in (8, 16):
                yield from transparent(picture, bits, options)
                inks = draw(bits, 4)
                values = (1 - inks[..., :3] / full) * (1 - inks[..., 3:] / full)
                yield picture("CMYK", write_tiff(inks, bits, CMYK, **options), values)
            if bits <= 8:
                table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3)) * 257
                index = draw(bits, 1)
                data = write_tiff(index, bits, PALETTE, colours=table, **options)
                yield picture("palette", data, table[index[..., 0]] / 65535)
        for bits in (16, 32):
            values = np.linspace(-1, 1, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(f"f{bits // 8}")
            data = write_tiff(values, bits, RGB, **options)
            yield picture("RGB, floats", data, (values.astype(np.float64) + 1) / 2, compare=False)
        yield from left_to_pillow(picture, options)


def transparent(picture: Callable[..., Picture], bits: int, options: dict[str, Any]) -> Iterator[Picture]:
    full = 2**bits - 1
    for samples, kind, name in ((2, GREY, "grey"), (2, GREY_WHITE, "grey, 0 is white,"), (4, RGB, "RGB")):
        pixels = draw(bits, samples)
        colour, alpha = pixels[..., :-1] / full, pixels[..., -1:] / full
        shown = 1 - colour if kind == GREY_WHITE else colour
        data = write_tiff(pixels, bits, kind, extra=[STRAIGHT], **options)
        yield picture(f"{name} alpha", data, shown * alpha + (1 - alpha), compare=False)
        if kind != GREY_WHITE:
            hidden = np.round(colour * alpha * full)
            stored = np.concatenate([hidden, pixels[..., -1:]], axis=2).astype(pixels.dtype)
            data = write_tiff(stored, bits, kind, extra=[PREMULTIPLIED], **options)
            yield picture(f"{name} alpha, premultiplied", data, hidden / full + (1 - alpha), compare=False)


def left_to_pillow(picture: Callable[..., Picture], options: dict[str, Any]) -> Iterator[Picture]:
    """YCbCr by ITU-R 601 and CIE L*a*b* of D50, both at 8 bits."""
    ycc = (draw(8, 3) // 4 + 96).astype(np.uint8)  # colours that sRGB has, so that clipping plays no part
    y, cb, cr = (ycc[..., i].astype(float) for i in range(3))
    cb, cr = cb - 128, cr - 128
    values = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2).clip(0, 255) / 255
    yield picture("YCbCr, no JPEG", write_tiff(ycc, 8, YCBCR, **options), values, 1.51 * STEP)  # libtiff's integers
    lab = np.stack([draw(8, 1)[..., 0] // 2 + 64, draw(8, 2)[..., 0] % 16, draw(8, 2)[..., 1] % 16], axis=2)
    lightness, a, b = lab[..., 0] * (100.0 / 255), lab[..., 1].astype(float), lab[..., 2].astype(float)
    f = [(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200]
    xyz = np.stack([np.where(v > 6 / 29, v**3, (v - 4 / 29) * 3 * (6 / 29) ** 2) for v in f], axis=2)
    d50 = np.array([0.9642, 1.0, 0.8249])
    to_linear = np.array(  # Bruce Lindbloom: XYZ of D50 -> linear sRGB, adapted by Bradford
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    values = srgb_curve((xyz * d50 @ to_linear.T).clip(0, 1))
    # littlecms: a table of 33 grid points a side, and a rounding
    yield picture("Lab", write_tiff(lab.astype(np.uint8), 8, LAB, **options), values, 2.01 * STEP, compare=False)


def pngs() -> Iterator[Picture]:
    linear = chunk(b"iCCP", b"g\0\0" + zlib.compress(imagecodecs.cms_profile("gray", gamma=1.0)))
    for turn, interlaced in itertools.product(range(1, 9), (False, True)):
        exif = Image.Exif()
        exif[0x0112] = turn
        turned = [chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))]

        def picture(
            row: str, data: bytes, values: np.ndarray, near: float, compare: bool = True, turn: int = turn
        ) -> Picture:
            others = ("Pillow", "libpng") if turn == 1 else ()  # both leave it to their caller
            return Picture(row, data, "png", expect(values, turn), near, others if compare else ())

        for bits, (kind, samples) in itertools.product((1, 2, 4, 8, 16), ((0, 1), (4, 2), (2, 3), (6, 4))):
            if bits < 8 and kind:
                continue
            pixels, full = draw(bits, samples), 2**bits - 1
            near = EXACT if bits == 16 or kind in (0, 2) else 1.01 * STEP  # Pillow lays over white at 8 bits
            values = pixels / full
            if kind in (4, 6):
                values = values[..., :-1] * values[..., -1:] + 1 - values[..., -1:]
            data = write_png(pixels, bits, kind, interlaced=interlaced, chunks=turned)
            yield picture(f"PNG of {samples} samples", data, values, near, compare=kind in (0, 2))
            if kind == 0 and bits >= 8:
                lit = np.maximum(pixels, full // 16)
                data = write_png(lit, bits, 0, interlaced=interlaced, chunks=[linear, *turned])
                yield picture("PNG, profile", data, srgb_curve(lit / full), 2.01 * STEP, compare=False)
        for bits in (1, 2, 4, 8):
            table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
            index = draw(bits, 1)
            palette = chunk(b"PLTE", table.tobytes())
            data = write_png(index, bits, 3, interlaced=interlaced, chunks=[palette, *turned])
            yield picture("PNG palette", data, table[index[..., 0]] / 255, EXACT)


def verdict(picture: Picture) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode_image(picture.data, picture.extension, 3)
    except BrokenImage:
        return "refused"
    same = found.shape == picture.expected.shape
    return "right" if same and np.abs(found - picture.expected).max() <= picture.tolerance else "wrong"


def of_others(picture: Picture) -> dict[str, str]:
    """What Pillow and libtiff make of a file: agrees (to two steps of 8 bits), differs or cannot."""
    found: dict[str, str] = {}
    for name in picture.others:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if name == "Pillow":
                    image = Image.open(io.BytesIO(picture.data))
                    image.load()
                    if image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
                        raise ValueError(f"of mode {image.mode}, which has no 8 bits")
                    pixels = np.asarray(image.convert("RGB")) / 255
                elif name == "libpng":
                    pixels = imagecodecs.png_decode(picture.data)
                    pixels = pixels.reshape(*pixels.shape[:2], -1) / (255 if pixels.dtype == np.uint8 else 65535)
                else:
                    pixels = imagecodecs.tiff_decode(picture.data, asrgb=True)[..., :3] / 255
        except Exception:
            found[name] = "cannot"
            continue
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).transpose(2, 0, 1) * 2 - 1
        near = pixels.shape == picture.expected.shape and np.abs(pixels - picture.expected).max() <= 2.01 * STEP
        found[name] = "agrees" if near else "differs"
    return found


def tally(pictures: Iterator[Picture], others: bool) -> dict[str, Counter[str]]:
    table: dict[str, Counter[str]] = {}
    for picture in pictures:
        counts = table.setdefault(picture.row, Counter())
        counts[verdict(picture)] += 1
        if others:
            counts.update(f"{name} {word}" for name, word in of_others(picture).items())
    return table


def test_one_picture_of_each_kind() -> None:
    """Every mode and depth, in one compression and one orientation that turns and mirrors."""
    table = tally(tiffs(("lzw",), (7,)), others=False)
    assert len(table) == 14
    assert {row: counts for row, counts in table.items() if set(counts) != {"right"}} == {}


@pytest.mark.slow
def test_the_whole_matrix() -> None:
    pictures = itertools.chain(tiffs(tuple(COMPRESSIONS), tuple(range(1, 9))), pngs())
    table = tally(pictures, others=True)
    columns = ["right", "refused", "wrong"]
    decoders, words = ("Pillow", "libtiff", "libpng"), ("agrees", "differs", "cannot")
    columns += [f"{name} {word}" for name in decoders for word in words]
    print("\n" + f"{'':28}" + " ".join(f"{name:>15}" for name in columns))
    for row, counts in [*table.items(), ("all", sum(table.values(), Counter()))]:
        print(f"{row:28}" + " ".join(f"{counts[name]:15}" for name in columns))
    assert {row: counts for row, counts in table.items() if counts["wrong"] or counts["refused"]} == {}


WRITTEN_BY_PILLOW = {"1": ("group4", "group3", "tiff_ccitt", "lzma"), "L": ("jpeg", "lzma"), "RGB": ("jpeg", "lzma")}
WRITTEN_BY_PILLOW |= {"YCbCr": ("jpeg",), "CMYK": ("jpeg", "lzma")}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", WRITTEN_BY_PILLOW)
def test_fax_and_jpeg_inside_equal_pillow(mode: str, orientation: int) -> None:
    """Compressions that `files.py` does not write."""
    y, x = np.mgrid[0:32, 0:48]
    inks = np.stack([x * 5, y * 7, (x + y) * 3, y * 2 + x], axis=2).astype(np.uint8)
    samples = {"L": 1, "CMYK": 4}.get(mode, 3)
    image = Image.fromarray(x * 5 > 100) if mode == "1" else None
    image = image or Image.frombytes(mode, (48, 32), inks[..., :samples].tobytes())
    for compression in WRITTEN_BY_PILLOW[mode]:
        file = io.BytesIO()
        image.save(file, "TIFF", compression=compression, tiffinfo={274: orientation})
        expected = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) / 127.5 - 1
        found = decode_image(file.getvalue(), "tif", 3)
        assert found.shape == ((3, 32, 48) if orientation < 5 else (3, 48, 32))
        near = 0.51 * STEP if mode == "CMYK" else EXACT  # Pillow rounds the product of two inks to 8 bits
        np.testing.assert_allclose(found, expected, rtol=0, atol=near)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_subsampled_colours_without_jpeg(orientation: int) -> None:
    """Two by two pixels share a colour: four Y, then Cb and Cr."""
    bright = draw(8, 1)[..., 0] // 2 + 64
    cells = bright.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    grey = np.full((len(cells), 2), 128, np.uint8)  # no colour, so that how it is spread plays no part
    stored = np.concatenate([cells, grey], axis=1).astype(np.uint8).tobytes()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    options: dict[str, Any] = {"subsampling": (2, 2), "orientation": orientation}
    with pytest.raises(BrokenImage, match="share colours, without compression"):  # which Pillow gets wrong
        decode_image(write_tiff(pixels, 8, YCBCR, strips=[stored], **options), "tif", 3)
    strips = [COMPRESSIONS["lzw"][1](stored)]
    data = write_tiff(pixels, 8, YCBCR, compression="lzw", strips=strips, **options)
    expected = expect(bright[..., None] / 255, orientation)
    np.testing.assert_allclose(decode_image(data, "tif", 3), expected, rtol=0, atol=1.01 * STEP)  # libtiff's integers
