"""How much the picture changes when the latent does: by a small random step, and along a line between two latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.devices import in_float64
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Quantity, Section, Verdict, graded_verdict
from ldm_vae.diagnostics.probes import BLANK, NOISIER, Done, Probes, decode_in_batches, each, noise_like, pairs, silent
from ldm_vae.printable import counted

STEP = 0.1  # standard deviations of the latents
STEPS_PER_LINE = 8  # between two latents
PAIRS = 4  # pairs of probes, a line for each
# A linear decoder of orthogonal directions has gain 1: an error of a diffusion model is as large in the picture as it
# is in the latent. A gain of 2 means four times the squared error, a gain of 4 sixteen times.
SHARP, STEEP = 2.0, 4.0


def gain(codec: LatentCodec, probes: Probes, seed: int) -> float:
    """Change of the picture over the change of the latent, each in standard deviations.

    NaN where the pictures or the latents do not vary.
    """
    noise = STEP * probes.std * noise_like(probes.z, seed, "smoothness")
    moved = decode_in_batches(codec, probes.z + noise)
    change = in_float64(moved - probes.reconstruction).square().mean().sqrt()
    spread = probes.spread
    return float(change / spread / STEP) if probes.std > 0 and spread > 0 else float("nan")


def line_steps(codec: LatentCodec, a: Tensor, b: Tensor) -> np.ndarray:
    """(STEPS_PER_LINE,), root mean square change of the picture at each step, over the change from end to end."""
    weights = torch.linspace(0, 1, STEPS_PER_LINE + 1).to(a)[:, None, None, None]
    pictures = in_float64(decode_in_batches(codec, torch.lerp(a[None], b[None], weights)))
    steps = (pictures[1:] - pictures[:-1]).square().mean(dim=(1, 2, 3)).sqrt()
    whole = (pictures[-1] - pictures[0]).square().mean().sqrt()
    return (steps / whole).cpu().numpy()


def inspect_smoothness(codec: LatentCodec, probes: Probes, seed: int, done: Done = silent) -> Section:
    measured = gain(codec, probes, seed)
    ends = list(pairs(probes, PAIRS))
    lines = [line_steps(codec, a, b) for a, b in each(ends, STEPS_PER_LINE + 1, done)]
    usable = [steps for steps in lines if np.isfinite(steps).all()]
    detour = float(np.mean([steps.sum() for steps in usable])) if usable else None
    numbers = (
        Quantity(
            name="gain", title="Change of the picture per change of the latent",
            value=measured if np.isfinite(measured) else None, unit="deviations per deviation",
            missing="" if np.isfinite(measured) else "the images or the latents do not vary",
            definition=f"Gaussian noise of {STEP:g} standard deviations is added to the latents. The root mean square "
            f"change of the decoded probes is divided by the standard deviation of the images, and by {STEP:g}. This "
            "estimates the Frobenius norm of the decoder's Jacobian. A linear decoder of orthogonal directions has 1.",
            source="Hutchinson 1990, doi:10.1080/03610919008812866",
        ),
        Quantity(
            name="detour", title="Detour of the picture along a straight line", value=detour, unit="times",
            missing="" if detour is not None else "it takes two different images",
            definition=f"Sum of the root mean square changes over {STEPS_PER_LINE} even steps on the line between two "
            f"latents, divided by the change from end to end; mean over {counted(len(usable), 'pair')} of probes. "
            "A linear decoder has 1, a straight line.",
        ),
    )  # fmt: skip
    charts: tuple[Chart, ...] = ()
    if usable:
        middles = tuple(((np.arange(STEPS_PER_LINE) + 0.5) / STEPS_PER_LINE).tolist())
        mean = STEPS_PER_LINE * np.mean(usable, axis=0)
        charts = (
            Chart(
                name="speed", title="Speed of the picture along a straight line", kind="line",
                definition="Change of the picture at each step between two latents; 1 is an even share of the whole "
                "change. At a peak the picture switches from one image to the other.",
                x=Axis(title="place between the two latents"), y=Axis(title="speed", unit="even shares"),
                lines=(Line(label="", x=middles, y=tuple(mean.tolist())),),
            ),
        )  # fmt: skip
    return Section(
        name="smoothness",
        title="Smoothness",
        numbers=numbers,
        charts=charts,
        verdicts=(_verdict(measured, blank=probes.blank, gaussian=codec.model.bottleneck.gaussian),),
    )


def _verdict(measured: float, *, blank: bool, gaussian: bool) -> Verdict:
    if not np.isfinite(measured):
        return Verdict(name="smoothness", level="unknown", statement="The images or the latents do not vary.")
    statement = f"Noise in the latent is {measured:.2f} times as large in the picture; a linear decoder has 1."
    if measured <= SHARP and blank:  # a picture that never changes is smooth
        return Verdict(name="smoothness", level="unknown", statement=BLANK)
    advice = (
        "The decoder enlarges the errors of a diffusion model. Raise ema.decay"
        f"{f', or loss.rate.weight: {NOISIER}' if gaussian else ''}."
    )
    return graded_verdict("smoothness", measured, SHARP, STEEP, statement, advice)
