"""Does the latent turn and shrink with the picture? The equivariance error of encoder and decoder.

A change T is applied to the picture x and to its latent z = E(x): a quarter turn, or the mean over 2 x 2 or 4 x 4.
Three errors are measured:
    encoder: E(T x) against T z
    decoder: D(T z) against T D(z)
    both: D(T z) against T x
Source: Kouzelis et al. 2025, EQ-VAE, arXiv:2502.09509: diffusion models learn the latents of a codec more easily where
these change with the picture. They scale bilinearly; here the mean is taken, which commutes exactly with averaging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.devices import in_float64
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Quantity, Section, Verdict, gaps, graded_verdict
from ldm_vae.diagnostics.probes import (
    BLANK,
    Done,
    Probes,
    decode_in_batches,
    each,
    encode_in_batches,
    mean_psnr,
    silent,
)
from ldm_vae.printable import counted

Change = Callable[[Tensor], Tensor]
EQ_VAE = "Kouzelis et al. 2025, EQ-VAE, arXiv:2502.09509"
TURNS: dict[str, Change] = {f"turn by {90 * k}°": partial(torch.rot90, k=k, dims=(2, 3)) for k in (1, 2, 3)}
SCALES: dict[str, Change] = {f"scale 1/{k}": partial(F.avg_pool2d, kernel_size=k) for k in (2, 4)}
# The verdict goes by the error of the encoder, because it does not depend on how well the codec reconstructs. (In dB
# the same error costs a codec of 40 dB far more than one of 25 dB.) At 100 % the turned latent predicts the latent of
# the turned picture no better than the mean of each channel does. At 50 %, which was chosen, it misses a quarter of the
# power.
CLOSE, USELESS = 50.0, 100.0  # %
UNRELATED = 100 * 2**0.5  # %, the error of two latents that have nothing to do with each other


@dataclass(frozen=True)
class Equivariance:
    """The errors under one change. A PSNR is infinite where both pictures are equal.

    encoder: relative error of E(T x) against T z, in %.
    decoder: PSNR of D(T z) against T D(z), in dB.
    through: PSNR of D(T z) against T x, in dB.
    reference: PSNR of D(E(T x)) against T x, in dB.
    """

    encoder: float
    decoder: float
    through: float
    reference: float

    @property
    def drop(self) -> float:
        """How many dB it costs to decode the changed latent instead of the latent of the changed picture."""
        return 0.0 if self.through == self.reference else self.reference - self.through


def measure_change(codec: LatentCodec, probes: Probes, change: Change) -> Equivariance:
    # Convolutions are slow on views.
    picture, expected = change(probes.image).contiguous(), change(probes.z).contiguous()
    z = encode_in_batches(codec, picture)
    decoded = decode_in_batches(codec, expected)
    spread = in_float64(expected) - in_float64(expected).mean(dim=(0, 2, 3), keepdim=True)
    error = (in_float64(z - expected).square().sum() / spread.square().sum()).sqrt()
    return Equivariance(
        encoder=100 * float(error),
        decoder=mean_psnr(decoded, change(probes.reconstruction.clamp(-1, 1))),
        through=mean_psnr(decoded, picture),
        reference=mean_psnr(decode_in_batches(codec, z), picture),
    )


def inspect_equivariance(codec: LatentCodec, probes: Probes, done: Done = silent) -> Section:
    steps = each((TURNS | SCALES).items(), len(probes.image), done)
    errors = {name: measure_change(codec, probes, change) for name, change in steps}
    numbers, verdicts = [], []
    for group, changes in (("turns", TURNS), ("scales", SCALES)):
        those = [errors[name] for name in changes]
        what = "quarter turns" if group == "turns" else "scaling"
        of = f"Mean over {', '.join(changes)} and {counted(len(probes.image), 'probe')}."
        numbers += [
            _number(f"encoder_{group}", f"Encoder under {what}", "%", [e.encoder for e in those],
                    f"Root of the squared error of E(Tx) against T E(x), divided by the squared deviation of T E(x) "
                    f"from the mean of each channel. {of}"),
            _number(f"decoder_{group}", f"Decoder under {what}", "dB", [e.decoder for e in those],
                    f"PSNR of D(T z) against T D(z) on 8-bit values. {of}"),
            _number(f"drop_{group}", f"Loss by changing the latent under {what}", "dB", [e.drop for e in those],
                    f"PSNR of D(E(Tx)) against Tx, minus that of D(T E(x)) against Tx. {of}"),
        ]  # fmt: skip
        gaussian = codec.model.bottleneck.gaussian
        verdict = _verdict(f"equivariance_{group}", what, numbers[-3].value, numbers[-1].value, gaussian)
        verdicts.append(Verdict(name=verdict.name, level="unknown", statement=BLANK) if probes.blank else verdict)
    return Section(
        name="equivariance", title="Equivariance", numbers=tuple(numbers), verdicts=tuple(verdicts),
        charts=(
            _chart("encoder_error", "Encoder: error of E(Tx) against T E(x)", "error", "%",
                   {"": {name: e.encoder for name, e in errors.items()}}),
            _chart("picture_error", "Decoder: the changed latent against the changed picture", "PSNR", "dB",
                   {"D(T E(x))": {name: e.through for name, e in errors.items()},
                    "D(E(Tx))": {name: e.reference for name, e in errors.items()}}),
        ),
    )  # fmt: skip


def _number(name: str, title: str, unit: str, values: list[float], definition: str) -> Quantity:
    mean = float(np.mean(values))
    reason = (
        "" if np.isfinite(mean) else "it is infinite or undefined, because both are equal or the latents do not vary"
    )
    return Quantity(
        name=name, title=title, value=mean if np.isfinite(mean) else None, unit=unit, missing=reason,
        definition=definition, source=EQ_VAE,
    )  # fmt: skip


def _chart(name: str, title: str, axis: str, unit: str, lines: dict[str, dict[str, float]]) -> Chart:
    return Chart(
        name=name, title=title, definition=f"{title}, for each change T; probes, 8-bit values.", source=EQ_VAE,
        kind="bar", x=Axis(title="change"), y=Axis(title=axis, unit=unit),
        lines=tuple(
            Line(label=label, x=tuple(bars), y=gaps(bars.values())) for label, bars in lines.items()
        ),
    )  # fmt: skip


def _verdict(name: str, what: str, error: float | None, drop: float | None, gaussian: bool) -> Verdict:
    if error is None:
        statement = f"The error of the encoder under {what} is undefined, because the latents do not vary."
        return Verdict(name=name, level="unknown", statement=statement)
    cost = "" if drop is None else f". Decoding the changed latent costs {drop:z.1f} dB"
    statement = (
        f"Under {what} the changed latent differs from the latent of the changed picture by {error:.0f} % of a "
        f"standard deviation (unrelated latents: {UNRELATED:.0f} %){cost}."
    )
    advice = (
        "The latent of a changed picture is another latent, which a diffusion model must learn separately. "
        f"{'Raise loss.rate.weight, or finetune' if gaussian else 'Finetune'} (model.init_from) on changed latents and "
        "pictures as EQ-VAE does."
    )
    return graded_verdict(name, error, CLOSE, USELESS, statement, advice)
