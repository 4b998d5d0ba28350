"""Images of the gallery -> what the page embeds of them, within a number of bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.report.gallery import Gallery, Held
from ldm_vae.report.numbers import short
from ldm_vae.report.pictures import Pixels, choose_gain, data_uri, difference, difference_map, diverging_map, to_picture

BYTES = 5_500_000  # of all pictures of the gallery, as they stand in the page
SIDES = (768, 512, 384, 256, 160, 96)  # px; of a longer side the middle is shown; the first that fits into BYTES
LATENTS = 3  # images whose latents are shown: the first, the middle and the last of the gallery
CHANNELS = 16  # of a latent that are shown
PAIR = (320, 400)  # px, width and height at most of the two pictures in the summary


@dataclass(frozen=True)
class Item:
    """original, reconstruction, difference: data URIs of width x height pixels.   values: title and text."""

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
    """One channel of a latent as a picture.   limit: of its colours."""

    number: int
    uri: str
    low: str
    high: str
    mean: str
    limit: str


@dataclass(frozen=True)
class LatentPictures:
    key: str
    height: int
    width: int
    channels: list[Channel]


@dataclass(frozen=True)
class Pair:
    """The middles of an original and its reconstruction, in true pixels."""

    key: str
    why: str
    original: str
    reconstruction: str
    width: int
    height: int


@dataclass(frozen=True)
class Album:
    """gain: of the differences.   notes: what was left out to stay within BYTES."""

    items: list[Item]
    latents: list[LatentPictures]
    pair: Pair | None
    gain: int
    notes: list[str] = field(default_factory=list)


def make_album(gallery: Gallery) -> Album:
    held = gallery.held
    gain = choose_gain([difference(h.original, h.reconstruction) for h in held])
    for side in SIDES:
        items = _items(held, side, gain)
        if len(items) == len(held):
            break
    notes = list(gallery.notes)
    if len(items) < len(held):
        notes.append(f"{len(held) - len(items)} pictures are left out, so that the file stays small.")
    chosen = sorted({0, len(held) // 2, len(held) - 1}) if held else []
    latents = [_latents(held[i]) for i in chosen[:LATENTS]]
    if held and len(held[0].latent) > CHANNELS:
        notes.append(f"Of {len(held[0].latent)} latent channels the first {CHANNELS} are shown.")
    return Album(items, latents, _pair(held[len(held) // 2]) if held else None, gain, notes)


def _items(held: list[Held], side: int, gain: int) -> list[Item]:
    """As many as fit."""
    items: list[Item] = []
    left = BYTES
    for number, h in enumerate(held):
        original, reconstruction = _middle(h.original, side, side), _middle(h.reconstruction, side, side)
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
        values, missing = _values(h)
        size = f"{h.size[1]} × {h.size[0]} pixels"
        if (height, width) != h.size:
            size += f", of which the middle {width} × {height} are shown"
        items.append(
            Item(
                f"image-{number}",
                h.choice.key,
                h.choice.why,
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
    return items


def _values(held: Held) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    row = held.choice.row
    if row is None:
        text = "infinite: the pictures are equal" if held.psnr is None else f"{short(held.psnr)} dB"
        return [("PSNR of what is shown", text)], []
    values = [
        (describe_metric(n).title, f"{short(v)} {describe_metric(n).unit}".strip())
        for n, v in row.values.items()
        if v is not None
    ]
    return values, [(describe_metric(n).title, reason) for n, reason in row.missing.items()]


def _latents(held: Held) -> LatentPictures:
    channels = []
    for number, values in enumerate(held.latent[:CHANNELS]):
        low, high = float(values.min()), float(values.max())
        limit = max(abs(low), abs(high))
        uri = data_uri(diverging_map(values, limit))
        channels.append(
            Channel(number, uri, short(low, 3), short(high, 3), short(float(values.mean()), 3), short(limit, 3))
        )
    return LatentPictures(held.choice.key, held.latent.shape[1], held.latent.shape[2], channels)


def _pair(held: Held) -> Pair:
    original, reconstruction = (_middle(p, *PAIR) for p in (held.original, held.reconstruction))
    uris: list[str] = [data_uri(picture) for picture in (to_picture(original), to_picture(reconstruction))]
    return Pair(held.choice.key, held.choice.why, uris[0], uris[1], original.shape[2], original.shape[1])


def _middle(pixels: Pixels, width: int, height: int) -> Pixels:
    """(C, H, W) -> at most (C, height, width)."""
    top, left = max(0, pixels.shape[1] - height) // 2, max(0, pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]
