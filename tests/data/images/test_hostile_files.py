"""Files that are damaged, or that would take far more memory or time than their size: refused before it is taken."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.pixels import MAX_BYTES, BrokenImage, check_size
from tests.data.images.files import GREY, RGB, chunk, write_png, write_tiff


def noise(height: int, width: int, channels: int, dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype)


def reason(data: bytes, extension: str, channels: int = 3) -> str:
    with pytest.raises(BrokenImage) as caught:
        decode_image(data, extension, channels)
    return caught.value.reason


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def saved(pixels: np.ndarray, name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_png_with_a_wrong_checksum_anywhere_is_broken(dtype: str) -> None:
    data = write_png(noise(20, 20, 3, dtype), np.dtype(dtype).itemsize * 8, 2, chunks=[chunk(b"tEXt", b"a\0b")])
    assert decode_image(data, "png", 3).shape == (3, 20, 20)
    place = 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        wrong = bytearray(data)
        wrong[place + 8 + length] ^= 1  # the first byte of the checksum
        assert "PNG: the checksum of a chunk fails" in reason(bytes(wrong), "png")
        place += 12 + length
    for share in (0.3, 0.6, 0.9, 0.99):  # an interrupted download, of a file that was reserved in full
        cut = int(len(data) * share)
        reason(data[:cut] + bytes(len(data) - cut), "png")
        reason(data[:cut], "png")


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_deep_png_inflates_to_its_picture_and_no_more(interlaced: bool) -> None:
    pixels = noise(9, 7, 3, "u2")
    whole = write_png(pixels, 16, 2, interlaced=interlaced)
    np.testing.assert_allclose(decode_image(whole, "png", 3), pixels.transpose(2, 0, 1) / 32767.5 - 1, atol=2e-7)
    data = write_png(pixels, 16, 2, interlaced=interlaced, surplus=bytes(2**26))
    assert "inflate to more than" in reason(data, "png")
    short = write_png(pixels[:-2], 16, 2, interlaced=interlaced)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 9, 16, 2, 0, 0, int(interlaced)))
    assert "inflate to" in reason(short[:8] + header + short[33:], "png")


def test_a_jpeg_without_its_end_is_broken() -> None:
    data = saved(noise(200, 200, 3), "JPEG")
    decode_image(data, "jpg", 3)
    for share in (0.4, 0.7, 0.99):
        cut = int(len(data) * share)
        reason(data[:cut] + bytes(len(data) - cut), "jpg")


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits", "zstd"])
def test_a_tiff_whose_last_strip_is_cut_is_broken(compression: str) -> None:
    data = write_tiff(noise(20, 20, 3), 8, RGB, compression=compression)
    decode_image(data, "tif", 3)
    for cut in (1, 5, 30):
        assert "truncated" in reason(data[:-cut], "tif")


def test_jpeg_in_a_tiff_that_is_cut_is_broken() -> None:
    strips = [saved(part, "JPEG") for part in np.split(noise(64, 64, 1)[..., 0], 2)]
    whole = bytearray(write_tiff(noise(64, 64, 1), 8, GREY, strips=strips))
    whole[whole.index(struct.pack("<HHIH", 259, 3, 1, 1)) + 8] = 7  # compression: JPEG
    assert decode_image(bytes(whole), "tif", 1).shape == (1, 64, 64)
    assert "truncated" in reason(bytes(whole[:-40]), "tif", 1)
    half = len(strips[1]) // 2
    zeros = whole[:-half] + bytes(half)
    assert "JPEG: the data end before the picture does" in reason(bytes(zeros), "tif", 1)


def test_a_strip_that_was_never_written_is_broken() -> None:
    data = write_tiff(noise(20, 20, 1), 8, GREY, compression="lzw", strips=[b"", b""])
    assert "never written" in reason(data, "tif", 1)


def test_a_huge_picture_inside_a_small_tiff_takes_no_memory() -> None:
    huge = np.zeros((6000, 6000), np.uint8)
    webp_like = bytes(imagecodecs.jpeg2k_encode(np.zeros((5000, 5000), np.uint8)))
    for code, stream in ((7, saved(huge, "JPEG")), (34712, webp_like)):
        data = bytearray(write_tiff(noise(16, 16, 1), 8, GREY, strips=[stream]))
        place = data.index(struct.pack("<HHIH", 259, 3, 1, 1))
        data[place + 8 : place + 10] = struct.pack("<H", code)
        assert "holds a picture of" in reason(bytes(data), "tif", 1)


@pytest.mark.parametrize("side", [8192, 4096])
def test_a_tile_far_larger_than_the_picture_is_refused(side: int) -> None:
    data = tiff(noise(16, 16, 3), photometric="rgb", tile=(16, 16), compression="zlib")
    for tag in (322, 323):
        place = data.index(struct.pack("<HH", tag, 4 if struct.pack("<HH", tag, 4) in data else 3))
        data = data[: place + 2] + struct.pack("<HII", 4, 1, side) + data[place + 12 :]
    assert f"a strip or tile of {side}x{side} for 16x16 pixels" in reason(data, "tif")


def test_a_tile_somewhat_larger_than_the_picture_is_read() -> None:
    pixels = noise(16, 16, 3)
    data = tiff(pixels, photometric="rgb", tile=(512, 512), compression="zlib")
    np.testing.assert_allclose(decode_image(data, "tif", 3), pixels.transpose(2, 0, 1) / 127.5 - 1, atol=2e-7)


def test_many_channels_are_refused_from_the_header() -> None:
    data = tiff(
        np.zeros((1000, 1000, 200), np.uint8), photometric="minisblack", planarconfig="contig", compression="zlib"
    )
    tracemalloc.start()
    assert reason(data, "tif") == "200 channels where 3 are wanted"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22  # of 200 MB; numpy's arrays are traced


def test_the_peak_of_decoding_is_bounded() -> None:
    check_size(2**13, 2**14, 3, 3)  # 4 bytes of Pillow's, 12 of the result
    for present, channels, itemsize, least in ((5, 5, 1, 16), (3, 3, 2, 16), (4, 4, 1, 16), (3, 3, 1, 24)):
        with pytest.raises(BrokenImage, match="over the limit"):
            check_size(2**13, 2**14, present, channels, itemsize=itemsize, least=least)
        check_size(2**12, 2**14, present, channels, itemsize=itemsize, least=least)
    assert MAX_BYTES == 2**27 * 16


PEAK = """
import sys
from pathlib import Path
from ldm_vae.data.images.decode import decode_image
data, extension = open(sys.argv[1], "rb").read(), sys.argv[2]
decode_image(open(sys.argv[3], "rb").read(), extension, 3)
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
decode_image(data, extension, 3)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_the_peak_is_little_more_than_the_result(tmp_path: Path, kind: str) -> None:
    """12 bytes a pixel are the result, 3 the integers it comes from; 37 were taken once."""
    side = 3000
    name = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF"}[kind]
    (tmp_path / "large").write_bytes(saved(np.zeros((side, side, 3), np.uint8), name))
    (tmp_path / "small").write_bytes(saved(np.zeros((8, 8, 3), np.uint8), name))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large"), kind, str(tmp_path / "small")]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes * 1024 / side**2 < 20  # with what the allocator keeps


def test_reasons_are_the_same_in_every_run() -> None:
    """Pillow names the object that it could not read, with its address."""
    page = b"<html>no picture</html>" * 40
    assert {reason(page, extension) for extension in ("jpg", "png", "webp")} == {
        "UnidentifiedImageError: cannot identify image file <_io.BytesIO object>"
    }
    assert "0x" not in reason(page, "tif")


FAILING = {
    "png_zero_tail.png": "checksum",
    "tif_jpeg_strips_cut.tif": "truncated",
    "tif_200_channels.tif": "200 channels where 3 are wanted",
    "tif_tile_8192_for_16x16.tif": "8192x8192 for 16x16",
}


@pytest.mark.parametrize("name", FAILING)
def test_the_shared_files_are_broken(test_data: Path, name: str) -> None:
    assert FAILING[name] in reason((test_data / "data" / "failing" / name).read_bytes(), Path(name).suffix[1:])


def test_the_shared_files_are_read_right(test_data: Path) -> None:
    def read(name: str, channels: int) -> np.ndarray:
        return decode_image((test_data / "data" / "failing" / name).read_bytes(), "tif", channels)

    assert read("tif_palette_orientation6.tif", 3).shape == (3, 30, 20)
    ramp = read("tif_gray_4bit.tif", 1)
    assert ramp.min() == -1.0 and ramp.max() == 1.0 and len(np.unique(ramp)) == 16
    assert set(np.unique(read("tif_1bit.tif", 1))) == {-1.0, 1.0}
    pages = read("tif_3_grey_pages.tif", 3)
    np.testing.assert_array_equal(pages[0], pages[1])
    np.testing.assert_array_equal(pages[0], pages[2])


def test_premultiplied_alpha_becomes_straight_where_it_is_kept() -> None:
    alpha = np.full((4, 4, 1), 51, np.uint8)  # a fifth
    stored = np.concatenate([np.full((4, 4, 3), 20, np.uint8), alpha], axis=2)
    stored[0, 0] = 0
    kept = decode_image(write_tiff(stored, 8, RGB, extra=[1]), "tif", 4)
    np.testing.assert_allclose(kept[:3, 1:], 100 / 127.5 - 1, atol=3e-7)
    np.testing.assert_allclose(kept[3, 1:], 51 / 127.5 - 1, atol=3e-7)
    assert (kept[:, 0, 0] == -1.0).all()  # quite transparent: no colour is known


def test_inflating_stops_at_the_strip() -> None:
    data = write_tiff(noise(8, 8, 1), 8, GREY, strips=[zlib.compress(bytes(2**27), 9)])
    place = data.index(struct.pack("<HHIH", 259, 3, 1, 1))
    data = data[: place + 8] + struct.pack("<H", 8) + data[place + 10 :]
    tracemalloc.start()
    reason(data, "tif", 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22
