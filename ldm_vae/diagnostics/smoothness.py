"""How the picture moves when the latent does: a small step at random, and the straight line between two latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Number, Section, Verdict, counted
from ldm_vae.diagnostics.probes import BLANK, Probes, decode_in_batches, noise_like, pairs

STEP = 0.1  # standard deviations of the latents
STEPS = 8  # along a line
PAIRS = 4  # of probes
# A linear decoder of orthogonal directions has gain 1: what a diffusion model gets wrong appears in the picture as
# large as it was in the latent. Twice and four times that are four and sixteen times the squared error.
SHARP, STEEP = 2.0, 4.0


def gain(codec: LatentCodec, probes: Probes, seed: int) -> float:
    """Deviations of the picture per deviation of latent noise; NaN where pictures or latents do not vary."""
    noise = STEP * probes.std * noise_like(probes.z, seed, "smoothness")
    moved = decode_in_batches(codec, probes.z + noise)
    change = (moved - probes.reconstruction).double().square().mean().sqrt()
    spread = probes.spread
    return float(change / spread / STEP) if probes.std > 0 and spread > 0 else float("nan")


def line_steps(codec: LatentCodec, a: Tensor, b: Tensor) -> np.ndarray:
    """(STEPS,), root mean square change of the picture at each step of the line, over that from end to end."""
    weights = torch.linspace(0, 1, STEPS + 1).to(a)[:, None, None, None]
    pictures = decode_in_batches(codec, torch.lerp(a[None], b[None], weights)).double()
    steps = (pictures[1:] - pictures[:-1]).square().mean(dim=(1, 2, 3)).sqrt()
    whole = (pictures[-1] - pictures[0]).square().mean().sqrt()
    return (steps / whole).cpu().numpy()


def inspect_smoothness(codec: LatentCodec, probes: Probes, seed: int) -> Section:
    measured = gain(codec, probes, seed)
    lines = [line_steps(codec, a, b) for a, b in pairs(probes, PAIRS)]
    usable = [steps for steps in lines if np.isfinite(steps).all()]
    detour = float(np.mean([steps.sum() for steps in usable])) if usable else None
    numbers = (
        Number(
            name="gain", title="Change of the picture per change of the latent",
            value=measured if np.isfinite(measured) else None, unit="deviations per deviation",
            missing="" if np.isfinite(measured) else "the images or the latents do not vary",
            definition=f"Root mean square change of the decoded probes under Gaussian noise of {STEP:g} of the "
            f"latents' standard deviation, over the images' standard deviation, divided by {STEP:g}. It estimates "
            "the Frobenius norm of the decoder's Jacobian; 1 for a linear decoder of orthogonal directions.",
            source="Hutchinson 1990, doi:10.1080/03610919008812866",
        ),
        Number(
            name="detour", title="Detour of the picture along a straight line", value=detour, unit="times",
            missing="" if detour is not None else "it takes two different images",
            definition=f"Sum of the root mean square changes over {STEPS} even steps on the line between two "
            f"latents, over the change from end to end, mean over {counted(len(usable), 'pair')} of probes; 1 is a "
            "straight line, as linear decoders give.",
        ),
    )  # fmt: skip
    charts: tuple[Chart, ...] = ()
    if usable:
        middles = tuple(((np.arange(STEPS) + 0.5) / STEPS).tolist())
        mean = STEPS * np.mean(usable, axis=0)
        charts = (
            Chart(
                name="speed", title="Speed of the picture along a straight line", kind="line",
                definition="Change of the picture at each step between two latents, in units of an even share of the "
                "whole change; peaks are places where the picture switches.",
                x=Axis(title="place between the two latents"), y=Axis(title="speed", unit="even shares"),
                lines=(Line(label="", x=middles, y=tuple(mean.tolist())),),
            ),
        )  # fmt: skip
    return Section(
        name="smoothness",
        title="Smoothness",
        numbers=numbers,
        charts=charts,
        verdicts=(_verdict(measured, blank=probes.blank),),
    )


def _verdict(measured: float, *, blank: bool) -> Verdict:
    if not np.isfinite(measured):
        return Verdict(name="smoothness", level="unknown", statement="The images or the latents do not vary.")
    statement = f"Noise in the latent appears {measured:.2f} times as large in the picture."
    if measured <= SHARP and blank:  # as smooth as a picture that never changes
        return Verdict(name="smoothness", level="unknown", statement=BLANK)
    if measured <= SHARP:
        return Verdict(name="smoothness", level="good", statement=statement)
    return Verdict(
        name="smoothness",
        level="warning" if measured <= STEEP else "bad",
        statement=f"{statement} 1 is a linear decoder's.",
        advice="Errors of a diffusion model are enlarged. Raise loss.rate.weight, so that training shows the decoder "
        "noisier latents, or ema.decay.",
    )
