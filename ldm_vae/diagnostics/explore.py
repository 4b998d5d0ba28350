"""Pictures of the latent space: what lies between two images, along its main directions, and at random places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.aggregate import REASON
from ldm_vae.diagnostics.channels import ChannelSums
from ldm_vae.diagnostics.findings import Picture, Section, Verdict
from ldm_vae.diagnostics.mosaic import write_mosaic
from ldm_vae.diagnostics.probes import Probes, decode_in_batches, noise_like
from ldm_vae.noise import rng

COLUMNS = 7  # of interpolations
DIRECTIONS = 4  # principal directions shown, at most
STEPS = np.linspace(-2, 2, 5)  # standard deviations along a direction
SAMPLES = 6  # of each distribution
Array = npt.NDArray[np.float64]
Axes = tuple[Array, Array]  # of `principal_directions`


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    return (1 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Along the great circle between the directions of a and b, the length between theirs (Shoemake 1985; White 2016,
    arXiv:1609.04468). The straight line where the two are parallel."""
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(angle.sin()) < 1e-4:
        return lerp(a, b, t)
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def signed(steps: Array) -> list[str]:
    return [f"{step:+.3g}" if step else "0" for step in steps]


def _per_channel(values: Array, like: Tensor) -> Tensor:
    """(C,) or (N, C) -> (1 or N, C, 1, 1), as `like`."""
    return torch.from_numpy(np.atleast_2d(values)).to(like)[:, :, None, None]


def principal_directions(covariance: Array) -> Axes:
    """(C, C) -> deviations (C,), the largest first, and directions as rows, the largest entry of each positive."""
    values, vectors = np.linalg.eigh(covariance)
    directions = vectors.T[::-1]
    strongest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return np.sqrt(np.maximum(values[::-1], 0)), directions * np.sign(strongest)


def explore(codec: LatentCodec, views: Probes, probes: Probes, sums: ChannelSums, folder: Path, seed: int) -> Section:
    """Writes PNGs into `folder`.   views: images that are shown.   probes: whose correlations samples are to have."""
    section = Section(name="explore", title="A look around")
    if (channels := codec.model.config.out_channels) not in (1, 3):
        statement = f"Reconstructions of {channels} channels can't be shown as pictures; 1 or 3 can."
        return section.model_copy(
            update={"verdicts": (Verdict(name="pictures", level="unknown", statement=statement),)}
        )
    axes = principal_directions(sums.covariance)
    pictures = [
        _traverse(codec, views, axes, folder),
        _grid(codec, views, axes, folder),
        _sample(codec, probes, sums.mean, axes, folder, seed),
    ]
    verdicts: tuple[Verdict, ...] = ()
    if len(views.z) > 1:
        pictures.insert(0, _interpolate(codec, views, sums.mean, folder))
    else:
        statement = "There is no interpolation: it takes two images."
        verdicts = (Verdict(name="interpolation", level="unknown", statement=statement),)
    return section.model_copy(update={"pictures": tuple(pictures), "verdicts": verdicts})


def _interpolate(codec: LatentCodec, views: Probes, mean: Array, folder: Path) -> Picture:
    centre = _per_channel(mean, views.z)[0]
    a, b = views.z[0] - centre, views.z[1] - centre
    places = [i / (COLUMNS - 1) for i in range(COLUMNS)]
    z = torch.stack([between(a, b, t) + centre for between in (lerp, slerp) for t in places])
    labels = [f"{t:.2f}" for t in places]
    write_mosaic(folder / "interpolation.png", decode_in_batches(codec, z), ["linear", "spherical"], labels)
    return Picture(
        name="interpolation", title="Between two images", file="interpolation.png",
        definition="Decoded from points between the latents of two images (middle squares, made smaller): on the line, "
        "and on the great circle around the mean of all latents.",
        source="Spherical: White 2016, arXiv:1609.04468",
        description=f"Two rows of {COLUMNS} tiles, above linear, below spherical; at the left end one image, at the "
        "right end another. In the middle of the upper row contrast is low where the two average out; a cross-fade "
        "of both is usual for a codec of this kind, sudden changes or patterns are not.",
    )  # fmt: skip


def _traverse(codec: LatentCodec, views: Probes, axes: Axes, folder: Path) -> Picture:
    deviations, directions = axes
    shown = min(DIRECTIONS, len(deviations))
    shifts = np.concatenate([STEPS[:, None] * deviations[i] * directions[i] for i in range(shown)])
    z = views.z[:1] + _per_channel(shifts, views.z)
    share = 100 * deviations**2 / max(float((deviations**2).sum()), np.finfo(float).tiny)
    rows = [f"{i + 1}: {share[i]:.0f} %" for i in range(shown)]
    write_mosaic(folder / "traversal.png", decode_in_batches(codec, z), rows, signed(STEPS))
    return Picture(
        name="traversal", title="Along the main directions", file="traversal.png",
        definition="The latent of one image (its middle square, made smaller), moved at every position along a "
        "principal direction of the posterior means' channels, by standard deviations of that direction; beside each "
        "row, its share of the variance.",
        description=f"{shown} rows of {len(STEPS)} tiles, one row a direction, the strongest first; the middle tile of "
        "each is the image itself. Usually the first changes brightness and the next ones colours; a row without "
        "change is a direction that the decoder does not use.",
    )  # fmt: skip


def _grid(codec: LatentCodec, views: Probes, axes: Axes, folder: Path) -> Picture:
    deviations, directions = axes
    first = deviations[0] * directions[0]
    second = deviations[1] * directions[1] if len(deviations) > 1 else np.zeros_like(first)
    down = STEPS[::-1] if len(deviations) > 1 else np.zeros(1)
    shifts = np.array([x * first + y * second for y in down for x in STEPS])
    z = views.z[:1] + _per_channel(shifts, views.z)
    write_mosaic(folder / "grid.png", decode_in_batches(codec, z), signed(down), signed(STEPS))
    return Picture(
        name="grid", title="Over the first two directions", file="grid.png",
        definition="The latent of one image (its middle square, made smaller), moved at every position along the first "
        "principal direction (to the right) and the second (upwards), by standard deviations of each.",
        description=f"{len(down)} rows of {len(STEPS)} tiles with the image itself in the middle. Colours and "
        "brightness should change evenly over the grid; corners show where the decoder leaves what it has learned.",
    )  # fmt: skip


def _sample(codec: LatentCodec, probes: Probes, channel_mean: Array, axes: Axes, folder: Path, seed: int) -> Picture:
    like = probes.z[:1].expand(SAMPLES, -1, -1, -1)
    noise = noise_like(like, seed, "samples")
    mean = _per_channel(channel_mean, like)
    deviations, directions = axes
    root = torch.from_numpy((directions.T * deviations) @ directions).to(noise)
    positions = mean + torch.einsum("cd,ndhw->nchw", root, noise)
    field = mean + random_phase(probes.z - mean, SAMPLES, seed)
    z = torch.cat([noise, positions, field])
    rows = ["N(0, I)", "fitted", "fitted field"]
    write_mosaic(folder / "samples.png", decode_in_batches(codec, z), rows, [""] * SAMPLES)
    return Picture(
        name="samples", title="Decoded from random latents", file="samples.png",
        definition="Raw latents drawn from N(0, I); from a Gaussian with the mean and channel covariance of the "
        "posterior means, each position by itself; and from a Gaussian field that also has the probes' correlations "
        "between positions (random phase).",
        source="Field: Galerne, Gousseau & Morel 2011, doi:10.1109/TIP.2010.2052822",
        description=f"Three rows of {SAMPLES} tiles. The first is noise of the wrong scale and colour. {REASON} The "
        "second has the right colours and no structure, the third clouds of the right size. None shows things: that "
        "is left to a diffusion model on these latents.",
    )  # fmt: skip


def random_phase(centred: Tensor, count: int, seed: int) -> Tensor:
    """(N, C, h, w) -> (count, C, h, w), Gaussian with mean 0 and the mean periodic autocovariance of the N seen
    through a Hann window, without which the jump between opposite edges would come back as stripes."""
    window = torch.outer(*(torch.hann_window(n, dtype=torch.float64) for n in centred.shape[2:])).to(centred.device)
    spectra = torch.fft.fft2(centred.double() * window / window.square().mean().sqrt())
    shape = (count, len(centred), 1, *centred.shape[2:])
    noise = torch.from_numpy(rng(seed, "random phase").standard_normal(shape)).to(spectra.device)
    mixed = (torch.fft.fft2(noise) * spectra).sum(dim=1)
    scale = (len(centred) * centred.shape[2] * centred.shape[3]) ** 0.5
    return (torch.fft.ifft2(mixed).real / scale).to(centred)
