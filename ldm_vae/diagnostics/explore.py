"""Pictures of the latent space: between two images, along its main directions, and at random places."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.devices import in_float64
from ldm_vae.diagnostics.aggregate import REASON
from ldm_vae.diagnostics.channels import ChannelSums
from ldm_vae.diagnostics.findings import FloatArray, PictureFile, Section, Verdict
from ldm_vae.diagnostics.mosaic import write_mosaic
from ldm_vae.diagnostics.probes import Done, Probes, decode_in_batches, each, noise_like, silent
from ldm_vae.noise import rng

INTERPOLATION_TILES = 7  # in a row, from one image to the other
DIRECTIONS_SHOWN = 4  # principal directions at most
DEVIATION_STEPS = np.linspace(-2, 2, 5)  # standard deviations along a direction
SAMPLES_SHOWN = 6  # for each distribution
INTERPOLATION, TRAVERSAL, GRID, SAMPLES = PICTURES = ("interpolation.png", "traversal.png", "grid.png", "samples.png")
PrincipalAxes = tuple[FloatArray, FloatArray]  # deviations and directions, as `principal_directions` gives them


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    return (1 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at t on the great circle from a to b; its length lies between the lengths of a and b.

    Where a and b are parallel, the point lies on the straight line.
    Source: Shoemake 1985; White 2016, arXiv:1609.04468.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(angle.sin()) < 1e-4:
        return lerp(a, b, t)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def step_labels(steps: FloatArray) -> list[str]:
    return [f"{step:+.3g}" if step else "0" for step in steps]


def _per_channel(values: FloatArray, like: Tensor) -> Tensor:
    """(C,) or (N, C) -> (1 or N, C, 1, 1), with dtype and device of `like`."""
    return torch.from_numpy(np.atleast_2d(values)).to(like)[:, :, None, None]


def principal_directions(covariance: FloatArray) -> PrincipalAxes:
    """(C, C) -> standard deviations (C,), the largest first, and the directions as rows of (C, C).

    The sign of a direction is chosen so that its largest entry is positive.
    """
    values, vectors = np.linalg.eigh(covariance)
    directions = vectors.T[::-1]
    strongest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return np.sqrt(np.maximum(values[::-1], 0)), directions * np.sign(strongest)


def explore(
    codec: LatentCodec, views: Probes, probes: Probes, sums: ChannelSums, folder: Path, seed: int, done: Done = silent
) -> Section:
    """Writes PNGs into `folder`.

    views: the images that are shown.
    probes: the images whose correlations between positions are given to random latents.
    """
    section = Section(name="explore", title="A look around")
    if (channels := codec.model.config.out_channels) not in (1, 3):
        statement = f"Reconstructions of {channels} channels can't be shown as pictures; 1 or 3 can."
        return section.model_copy(
            update={"verdicts": (Verdict(name="pictures", level="unknown", statement=statement),)}
        )
    axes = principal_directions(sums.covariance)
    makers = [
        partial(_interpolate, codec, views, sums.mean, folder),
        partial(_traverse, codec, views, axes, folder),
        partial(_grid, codec, views, axes, folder),
        partial(_sample, codec, probes, sums.mean, axes, folder, seed),
    ]
    verdicts: tuple[Verdict, ...] = ()
    if len(views.z) == 1:
        del makers[0]
        statement = "There is no interpolation, because it takes two images."
        verdicts = (Verdict(name="interpolation", level="unknown", statement=statement),)
    pictures = [make() for make in each(makers, 1, done)]
    return section.model_copy(update={"pictures": tuple(pictures), "verdicts": verdicts})


def _interpolate(codec: LatentCodec, views: Probes, mean: FloatArray, folder: Path) -> PictureFile:
    centre = _per_channel(mean, views.z)[0]
    a, b = views.z[0] - centre, views.z[1] - centre
    places = [i / (INTERPOLATION_TILES - 1) for i in range(INTERPOLATION_TILES)]
    z = torch.stack([between(a, b, t) + centre for between in (lerp, slerp) for t in places])
    labels = [f"{t:.2f}" for t in places]
    write_mosaic(folder / INTERPOLATION, decode_in_batches(codec, z), ["linear", "spherical"], labels)
    return PictureFile(
        name="interpolation", title="Between two images", file=INTERPOLATION,
        definition="Decoded from points between the latents of two images (their middle squares, made smaller). The "
        "points lie on the straight line, and on the great circle around the mean of all latents.",
        source="Spherical: White 2016, arXiv:1609.04468",
        description=f"Two rows of {INTERPOLATION_TILES} tiles: linear above, spherical below. One image is at the left "
        "end, the other at the right. In the middle of the upper row contrast is low where the two average out. "
        "A codec of this kind usually cross-fades the two; sudden changes or patterns are unusual.",
    )  # fmt: skip


def _traverse(codec: LatentCodec, views: Probes, axes: PrincipalAxes, folder: Path) -> PictureFile:
    deviations, directions = axes
    shown = min(DIRECTIONS_SHOWN, len(deviations))
    shifts = np.concatenate([DEVIATION_STEPS[:, None] * deviations[i] * directions[i] for i in range(shown)])
    z = views.z[:1] + _per_channel(shifts, views.z)
    share = 100 * deviations**2 / max(float((deviations**2).sum()), np.finfo(float).tiny)
    rows = [f"{i + 1}: {share[i]:.0f} %" for i in range(shown)]
    write_mosaic(folder / TRAVERSAL, decode_in_batches(codec, z), rows, step_labels(DEVIATION_STEPS))
    return PictureFile(
        name="traversal", title="Along the main directions", file=TRAVERSAL,
        definition="The latent of one image (its middle square, made smaller) is moved at every position along a "
        "principal direction of the channels of the latents, by standard deviations of that direction. Each "
        "row is labelled with its share of the variance.",
        description=f"{shown} rows of {len(DEVIATION_STEPS)} tiles: one row for each direction, the strongest "
        "first. The middle tile of each row is the image itself. Usually the first direction changes brightness and "
        "the next ones change colours. A row without change is a direction that the decoder does not use.",
    )  # fmt: skip


def _grid(codec: LatentCodec, views: Probes, axes: PrincipalAxes, folder: Path) -> PictureFile:
    deviations, directions = axes
    first = deviations[0] * directions[0]
    second = deviations[1] * directions[1] if len(deviations) > 1 else np.zeros_like(first)
    down = DEVIATION_STEPS[::-1] if len(deviations) > 1 else np.zeros(1)
    shifts = np.array([x * first + y * second for y in down for x in DEVIATION_STEPS])
    z = views.z[:1] + _per_channel(shifts, views.z)
    write_mosaic(folder / GRID, decode_in_batches(codec, z), step_labels(down), step_labels(DEVIATION_STEPS))
    return PictureFile(
        name="grid", title="Over the first two directions", file=GRID,
        definition="The latent of one image (its middle square, made smaller) is moved at every position along the "
        "first principal direction (to the right) and the second (upwards), by standard deviations of each.",
        description=f"{len(down)} rows of {len(DEVIATION_STEPS)} tiles with the image itself in the middle. Colours "
        "and brightness should change evenly over the grid. The corners show where the decoder leaves what it has "
        "learned.",
    )  # fmt: skip


def _sample(
    codec: LatentCodec, probes: Probes, channel_mean: FloatArray, axes: PrincipalAxes, folder: Path, seed: int
) -> PictureFile:
    like = probes.z[:1].expand(SAMPLES_SHOWN, -1, -1, -1)
    gaussian = codec.model.bottleneck.gaussian
    noise = noise_like(like, seed, "samples")
    mean = _per_channel(channel_mean, like)
    deviations, directions = axes
    root = torch.from_numpy((directions.T * deviations) @ directions).to(noise)
    positions = mean + torch.einsum("cd,ndhw->nchw", root, noise)
    field = mean + random_phase(probes.z - mean, SAMPLES_SHOWN, seed)
    drawn = {"fitted": positions, "fitted field": field}
    if gaussian:  # the prior of no other bottleneck
        drawn = {"N(0, I)": noise, **drawn}
    tiles = decode_in_batches(codec, torch.cat(list(drawn.values())))
    write_mosaic(folder / SAMPLES, tiles, list(drawn), [""] * SAMPLES_SHOWN)
    prior = f"Above them is a row from N(0, I): noise of the wrong scale and colour. {REASON} " if gaussian else ""
    return PictureFile(
        name="samples", title="Decoded from random latents", file=SAMPLES,
        definition=f"Raw latents are drawn {'from N(0, I); ' if gaussian else ''}at each position alone from a "
        "Gaussian with the mean and channel covariance of the latents; and from a Gaussian field that also has the "
        "probes' correlations between positions (random phase).",
        source="Field: Galerne, Gousseau & Morel 2011, doi:10.1109/TIP.2010.2052822",
        description=f"Rows of {SAMPLES_SHOWN} tiles. The last row has clouds of the right size; the one before has the "
        f"right colours and no structure. {prior}No row shows objects: that is left to a diffusion model on these "
        "latents.",
    )  # fmt: skip


def random_phase(centred: Tensor, count: int, seed: int) -> Tensor:
    """(N, C, h, w) -> (count, C, h, w), a Gaussian field with mean 0 and the mean periodic autocovariance of the N.

    The autocovariance is taken through a Hann window: without it the jump between opposite edges would give stripes.
    """
    wide = in_float64(centred)
    window = torch.outer(*(torch.hann_window(n, dtype=torch.float64) for n in wide.shape[2:])).to(wide.device)
    spectra = torch.fft.fft2(wide * window / window.square().mean().sqrt())
    shape = (count, len(centred), 1, *centred.shape[2:])
    noise = torch.from_numpy(rng(seed, "random phase").standard_normal(shape)).to(spectra.device)
    mixed = (torch.fft.fft2(noise) * spectra).sum(dim=1)
    scale = (len(centred) * centred.shape[2] * centred.shape[3]) ** 0.5
    return (torch.fft.ifft2(mixed).real / scale).to(centred)
