"""File bytes <-> (C, H, W) float32 in [-1, 1], and the resize, crop and flip between file and network.

What a file's bytes become, in this order:

1. Pixels. jpg, jpeg, png and webp through Pillow, which tells them apart by content; the first frame of an animation.
   16-bit png and tif, tiff through `data/raster.py` (extra `raster`). npy through numpy, never unpickling.
2. ICC profile to sRGB (perceptual intent). A profile that does not open or belongs to another kind of pixel than the
   file's is ignored, as browsers do. Without one, pixels are sRGB, and CMYK becomes R = (255-C)(255-K)/255, and so on.
3. Palettes are expanded. Transparency (alpha channel, palette entry or colour key) is laid over white, in sRGB values:
   what a browser shows on a blank page, and what img2dataset does, so that nothing hidden underneath reaches training.
   With `channels` 4 it stays, straight, as the fourth channel, and a picture without it is refused.
4. Channels. Grey becomes R = G = B; colour becomes grey by ITU-R 601-2, 0.299 R + 0.587 G + 0.114 B. Any other number
   is never converted: the file has it or is refused.
5. EXIF orientation is applied (jpg, png, webp, tiff), so that up is up.
6. Range. uint8: v / 127.5 - 1.   uint16: v / 32767.5 - 1, full range, whatever the sensor used.   Floats are taken to
   be in [-1, 1]: past that by more than `RANGE_TOLERANCE`, or not finite, the file is refused; [0, 1] is not guessed.

npy is data, not a photograph: (H, W) for one channel, else (C, H, W) or (H, W, C), told apart by which of the outer
sides is `channels` ((C, H, W) if both); uint8, uint16 or float; steps 2 to 5 do not apply.

Whatever is refused raises `BrokenImage` with the reason, before memory is taken where the header tells (`MAX_PIXELS`).
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageCms
from pydantic import Field, model_validator
from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.precision import at_least_float32
from ldm_vae.recipe import Config

Positive = Annotated[int, Field(gt=0)]
Array = np.ndarray[Any, np.dtype[Any]]

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "npy", "tif", "tiff")  # the fields of a sample that hold a picture
MAX_PIXELS = 2**27  # pixels of one picture, 134 million (1.6 GB as three float32 channels); more is taken for a bomb
MAX_CHANNELS = 256  # channels of one picture; more is taken for a bomb
RANGE_TOLERANCE = 1e-3  # how far floats may pass 1: one step of float16 there

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}


class ImageConfig(Config):
    channels: Annotated[int, Field(gt=0, le=MAX_CHANNELS)] = 3  # channels of the image
    resize: Positive | None = None  # short side in pixels, enlarging smaller images; null keeps the size
    resize_filter: Literal["bicubic", "bilinear", "lanczos", "area"] = "bicubic"  # widened when shrinking (antialias)
    crop: Positive | None = None  # side in pixels of the square cut out after the resize; null keeps everything
    crop_mode: Literal["random", "center"] = "random"  # where; validation and evaluation always take the centre
    flip: bool = False  # mirror left to right with probability 1/2; never in validation and evaluation

    @model_validator(mode="after")
    def _possible(self) -> ImageConfig:
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than the short side after the resize, {self.resize}")
        return self


class BrokenImage(Exception):
    """A picture that cannot be used. The caller replaces, counts and reports it.   reason: one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_image(data: bytes, extension: str, channels: int) -> Array:
    """File bytes -> (C, H, W) float32 in [-1, 1], by the rules above.

    extension: without dot, any case.   Raises BrokenImage with the reason; UserError where a package is missing.
    """
    try:
        pixels = _read(data, extension.lower(), channels)
        return _unit_range(pixels)
    except (BrokenImage, UserError):
        raise
    except Exception as error:  # decoders raise anything on hostile bytes: struct.error, zlib.error, KeyError, ...
        raise BrokenImage(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def fit_image(array: Array, config: ImageConfig, generator: np.random.Generator | None) -> Array:
    """Resize, crop, flip: (C, H, W) -> (C, h, w), float32 in [-1, 1].

    generator: every random choice comes from it, the flip first, then top and left. None: centre crop, no flip.
    Raises BrokenImage for an image smaller than the crop.
    """
    flip = config.flip and generator is not None and bool(generator.integers(2))
    if config.resize is not None:
        height, width = resized(array.shape[1], array.shape[2], config.resize)
        if height * width > MAX_PIXELS:
            raise BrokenImage(f"{array.shape[2]}x{array.shape[1]} would become {width}x{height} by the resize")
        array = resize_image(array, height, width, config.resize_filter)
    if config.crop is not None:
        rows, columns = array.shape[1] - config.crop, array.shape[2] - config.crop
        if min(rows, columns) < 0:
            raise BrokenImage(f"{array.shape[2]}x{array.shape[1]} is smaller than the crop, {config.crop} pixels")
        if config.crop_mode == "random" and generator is not None:
            top, left = int(generator.integers(rows + 1)), int(generator.integers(columns + 1))
        else:
            top, left = round(rows / 2), round(columns / 2)  # as torchvision's CenterCrop
        array = array[:, top : top + config.crop, left : left + config.crop]
    return np.ascontiguousarray(array[:, :, ::-1] if flip else array)


def resized(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) with the short side `short`; the long side is rounded down, as in torchvision's Resize."""
    return (short, short * width // height) if height <= width else (short * height // width, short)


def resize_image(array: Array, height: int, width: int, resize_filter: str) -> Array:
    """(C, H, W) -> (C, height, width), float32, clipped to [-1, 1], where bicubic and lanczos overshoot.

    Pillow's filters, which widen when shrinking, on each channel as floats: for 8-bit pictures that is Pillow's own
    result without its two roundings, and it serves any number of channels.
    """
    if array.shape[1:] == (height, width):
        return array
    planes = [Image.fromarray(plane).resize((width, height), FILTERS[resize_filter]) for plane in array]
    return np.stack([np.asarray(plane) for plane in planes]).clip(-1.0, 1.0)


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, any shape: clamp, then round half to even. The one rounding of pictures and metrics.

    NaN has no meaning as uint8: the caller has looked for it.
    """
    return ((at_least_float32(image).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def encode_image(array: Array, extension: str) -> bytes:
    """(C, H, W) float in [-1, 1] -> file bytes: png and webp lossless, jpg at quality 95, each of 8 bits; npy float32.

    Raises UserError for a format that cannot hold that number of channels.
    """
    extension = extension.lower()
    file = io.BytesIO()
    if extension == "npy":
        np.save(file, array.astype(np.float32), allow_pickle=False)
        return file.getvalue()
    allowed = {"png": (1, 3, 4), "webp": (1, 3, 4), "jpg": (1, 3), "jpeg": (1, 3)}.get(extension, ())
    if array.shape[0] not in allowed:
        remedy = "write png or webp (1, 3 or 4 channels), jpg (1 or 3) or npy (any number)"
        raise UserError(f"a {extension} file of {array.shape[0]} channels", remedy)
    pixels = to_uint8(torch.from_numpy(np.ascontiguousarray(array))).numpy()
    name = "JPEG" if extension in ("jpg", "jpeg") else extension.upper()
    options: dict[str, Any] = {"quality": 95} if name == "JPEG" else {"lossless": True} if name == "WEBP" else {}
    Image.fromarray(pixels[0] if array.shape[0] == 1 else pixels.transpose(1, 2, 0)).save(file, name, **options)
    return file.getvalue()


def orient(pixels: Array, orientation: int) -> Array:
    """Undo the EXIF orientation 1..8 of (H, W, C); other values mean 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)  # 5: mirrored along the diagonal
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def check_size(height: int, width: int, channels: int = 1) -> None:
    """Raises BrokenImage for an empty picture and for a bomb; called before any pixel is decoded."""
    if min(height, width) < 1:
        raise BrokenImage(f"no pixels: {width}x{height}")
    if height * width > MAX_PIXELS or channels > MAX_CHANNELS:
        limit = f"{MAX_PIXELS} pixels and {MAX_CHANNELS} channels"
        raise BrokenImage(f"{width}x{height} pixels of {channels} channels are over the limit of {limit}")


def _read(data: bytes, extension: str, channels: int) -> Array:
    """-> (H, W, channels), upright: uint8, uint16, or float in [-1, 1]."""
    if extension not in EXTENSIONS:
        raise BrokenImage(f"{extension!r} is no picture format known here: {', '.join(EXTENSIONS)}")
    if extension == "npy":
        return _read_npy(data, channels)
    if extension in ("tif", "tiff"):
        from ldm_vae.data.raster import read_tiff  # the extra `raster`, which most data does not need

        return read_tiff(data, channels)
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        check_size(image.height, image.width)
        if image.format == "PNG" and data[24] == 16:  # bit depth in the IHDR chunk; Pillow would drop the lower byte
            from ldm_vae.data.raster import read_png

            return orient(read_png(data, channels, image.info.get("icc_profile")), _orientation(image))
        return orient(from_pillow(image, channels), _orientation(image))


def from_pillow(image: Image.Image, channels: int) -> Array:
    """Steps 2 to 4 for an 8-bit Pillow image -> (H, W, channels) uint8."""
    if channels not in (1, 3, 4) or (channels == 4 and not image.has_transparency_data):
        raise BrokenImage(f"{image.format} of mode {image.mode} where {channels} channels are wanted")
    picture = image.convert("RGBA") if image.has_transparency_data else image
    alpha = picture.getchannel("A") if image.has_transparency_data else None
    grey = image.mode in ("1", "L", "LA")
    colour = image.convert("L") if grey else picture if picture.mode == "CMYK" else picture.convert("RGB")
    colour = _to_srgb(colour, image.info.get("icc_profile"))
    if channels == 4 and alpha is not None:
        return np.dstack([np.asarray(colour.convert("RGB")), np.asarray(alpha)])
    if alpha is not None:
        colour = Image.composite(colour, Image.new(colour.mode, colour.size, "white"), alpha)
    pixels: Array = np.asarray(colour.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    transform = _srgb_transform(profile, image.mode) if profile else None
    if transform is not None:
        return ImageCms.applyTransform(image, transform) or image
    return image.convert("RGB") if image.mode == "CMYK" else image


@lru_cache(maxsize=16)  # a data set has few profiles, and building a transform takes longer than a small picture
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the profile does not open or does not fit the mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _orientation(image: Image.Image) -> int:
    """1..8; 1 where the EXIF block is missing or malformed, which spoils no pixel."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1


def _read_npy(data: bytes, channels: int) -> Array:
    """The layout rule for arrays -> (H, W, channels), after the header has been held against the bytes there are."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise BrokenImage("an array of Python objects is never unpickled")
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or channels not in (shape[0], shape[2]):
        raise BrokenImage(f"array of shape {shape} is neither ({channels}, H, W) nor (H, W, {channels})")
    first = shape[0] == channels
    check_size(*(shape[1:] if first else shape[:2]), channels=channels)
    # numpy takes the memory that the header asks for before it reads
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data) - file.tell():
        raise BrokenImage(f"{len(data) - file.tell()} bytes of data for shape {shape} of {dtype}: truncated?")
    array: Array = np.load(io.BytesIO(data), allow_pickle=False).reshape(shape)
    return array.transpose(1, 2, 0) if first else array


def _unit_range(pixels: Array) -> Array:
    """(H, W, C) of a known type -> (C, H, W) float32 in [-1, 1]: step 6."""
    kind, bytes_each = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == "u" and bytes_each <= 2:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
        return planes / (127.5 if bytes_each == 1 else 32767.5) - 1.0
    if kind != "f":
        raise BrokenImage(f"pixels of type {pixels.dtype}: uint8, uint16 and floats in [-1, 1] are known")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1.0 - RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE):  # true of NaN
        raise BrokenImage(f"floats from {low:g} to {high:g}: they must be finite and in [-1, 1]")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32).clip(-1.0, 1.0)
