"""Embeds the images of the gallery in the page, within a number of bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.report.gallery import Gallery, GalleryImage
from ldm_vae.report.numbers import short
from ldm_vae.report.pictures import Pixels, choose_gain, data_uri, difference, difference_map, diverging_map, to_picture

ALBUM_BYTES = 5_500_000  # bytes that all pictures of the gallery have in the page at most
# px; the first side is taken at which all pictures fit into ALBUM_BYTES. Of a larger picture the middle is shown.
SHOWN_SIDES = (768, 512, 384, 256, 160, 96)
LATENTS_SHOWN = 3  # images whose latents are shown: the first, the middle and the last of the gallery
CHANNELS_SHOWN = 16  # channels of a latent that are shown at most
PAIR_SIZE = (320, 400)  # px, largest width and height of the two pictures in the summary


@dataclass(frozen=True)
class EmbeddedImage:
    """An image as the page shows it.

    why: why it was chosen.
    size: its size in words.
    original, reconstruction, difference: data URIs of width x height pixels.
    values: title and text of each metric.
    missing: title of each metric without a value, and the reason.
    """

    identifier: str
    key: str
    why: str
    size: str
    width: int
    height: int
    original: str
    reconstruction: str
    difference: str
    values: list[tuple[str, str]]
    missing: list[tuple[str, str]]


@dataclass(frozen=True)
class Channel:
    """One channel of a latent as a picture.

    limit: absolute value that has the full colour.
    """

    number: int
    uri: str
    low: str
    high: str
    mean: str
    limit: str


@dataclass(frozen=True)
class LatentPictures:
    """The channels of the latent of one image, as pictures."""

    key: str
    height: int
    width: int
    channels: list[Channel]


@dataclass(frozen=True)
class PicturePair:
    """The middle of an image and of its reconstruction, pixel by pixel, for the summary."""

    key: str
    why: str
    original: str
    reconstruction: str
    width: int
    height: int


@dataclass(frozen=True)
class Album:
    """The embedded images.

    gain: factor by which differences are multiplied before they are shown.
    notes: what was left out, and why.
    """

    images: list[EmbeddedImage]
    latents: list[LatentPictures]
    pair: PicturePair | None
    gain: int
    notes: list[str] = field(default_factory=list)


def make_album(gallery: Gallery) -> Album:
    images = gallery.images
    gain = choose_gain([difference(image.original, image.reconstruction) for image in images])
    for side in SHOWN_SIDES:
        embedded = _embed(images, side, gain)
        if len(embedded) == len(images):
            break
    notes = list(gallery.notes)
    if len(embedded) < len(images):
        notes.append(f"{len(images) - len(embedded)} pictures are left out, so that the file stays small.")
    chosen = sorted({0, len(images) // 2, len(images) - 1}) if images else []
    latents = [_latents(images[i]) for i in chosen[:LATENTS_SHOWN]]
    if images and len(images[0].latent) > CHANNELS_SHOWN:
        notes.append(f"Of {len(images[0].latent)} latent channels the first {CHANNELS_SHOWN} are shown.")
    return Album(embedded, latents, _pair(images[len(images) // 2]) if images else None, gain, notes)


def _embed(images: list[GalleryImage], side: int, gain: int) -> list[EmbeddedImage]:
    """The images at that side, as many as fit into ALBUM_BYTES."""
    embedded: list[EmbeddedImage] = []
    left = ALBUM_BYTES
    for number, image in enumerate(images):
        original, reconstruction = (_middle(p, side, side) for p in (image.original, image.reconstruction))
        uri, other, distance = (
            data_uri(picture)
            for picture in (
                to_picture(original),
                to_picture(reconstruction),
                difference_map(difference(original, reconstruction), gain),
            )
        )
        left -= len(uri) + len(other) + len(distance)
        if left < 0:
            break
        height, width = original.shape[1:]
        values, missing = _values(image)
        size = f"{image.size[1]} × {image.size[0]} pixels"
        if (height, width) != image.size:
            size += f", of which the middle {width} × {height} are shown"
        embedded.append(
            EmbeddedImage(
                f"image-{number}",
                image.choice.key,
                image.choice.why,
                size,
                width,
                height,
                uri,
                other,
                distance,
                values,
                missing,
            )
        )
    return embedded


def _values(image: GalleryImage) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    row = image.choice.row
    if row is None:
        text = "infinite: the pictures are equal" if image.psnr is None else f"{short(image.psnr)} dB"
        return [("PSNR of what is shown", text)], []
    values = [
        (describe_metric(n).title, f"{short(v)} {describe_metric(n).unit}".strip())
        for n, v in row.values.items()
        if v is not None
    ]
    return values, [(describe_metric(n).title, reason) for n, reason in row.missing.items()]


def _latents(image: GalleryImage) -> LatentPictures:
    channels = []
    for number, values in enumerate(image.latent[:CHANNELS_SHOWN]):
        low, high = float(values.min()), float(values.max())
        limit = max(abs(low), abs(high))
        uri = data_uri(diverging_map(values, limit))
        channels.append(
            Channel(number, uri, short(low, 3), short(high, 3), short(float(values.mean()), 3), short(limit, 3))
        )
    return LatentPictures(image.choice.key, image.latent.shape[1], image.latent.shape[2], channels)


def _pair(image: GalleryImage) -> PicturePair:
    original, reconstruction = (_middle(p, *PAIR_SIZE) for p in (image.original, image.reconstruction))
    uris: list[str] = [data_uri(picture) for picture in (to_picture(original), to_picture(reconstruction))]
    return PicturePair(image.choice.key, image.choice.why, uris[0], uris[1], original.shape[2], original.shape[1])


def _middle(pixels: Pixels, width: int, height: int) -> Pixels:
    """(C, H, W) -> the middle, at most (C, height, width)."""
    top, left = max(0, pixels.shape[1] - height) // 2, max(0, pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]
