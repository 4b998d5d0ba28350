"""Makes charts from the rows of metrics.jsonl of one run or several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ldm_vae.diagnostics.findings import Axis, Chart, Line
from ldm_vae.report.charts import SEPARATOR
from ldm_vae.report.comparison import validation_marks
from ldm_vae.report.run import RunFolder

# Counters that should be zero: their sentence for 1, for more, and its end. They have no chart.
COUNTERS = {
    "skipped_steps": ("optimizer step was", "optimizer steps were", "skipped, because a gradient was not finite"),
    "validation/left_out": ("broken validation image was", "broken validation images were", "left out"),
}
NOT_DRAWN = ("step", "epoch", "validation/images", "time/broken_samples", "time/broken_share", *COUNTERS)


@dataclass(frozen=True)
class Group:
    """A chart and the metrics that it shows.

    part: heading in the section of training under which the chart stands.
    names: regular expression that the whole name of a metric matches.
    """

    part: str
    name: str
    title: str
    names: str
    definition: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"


# In the order of the page. A metric that matches no group has a chart of its own in the last part.
GROUPS = (
    Group("Losses", "total", "Total loss", "total", "What the autoencoder minimises: the weighted sum of all terms."),
    Group(
        "Losses",
        "reconstruction",
        "Reconstruction terms",
        "pixel|perceptual",
        "Pixel loss (its kind is loss.pixel.kind) and LPIPS distance on training crops, before weighting.",
        scale="log",
    ),
    Group(
        "Losses",
        "rate",
        "Rate",
        r"(charged_)?rate",
        "Price of the latent, on training crops. A Gaussian bottleneck charges the KL divergence of the "
        "posterior from N(0, I); a capacity or free bits charge something else in its place (charged_rate).",
        "nats per image",
    ),
    Group(
        "Validation",
        "validation_psnr",
        "PSNR",
        r"validation/psnr",
        "PSNR of reconstructions by the averaged weights, mean over the validation images.",
        "dB",
    ),
    Group(
        "Validation",
        "validation_lpips",
        "LPIPS",
        r"validation/lpips_\w+",
        "Perceptual distance of reconstructions by the averaged weights; lower is better.",
    ),
    Group(
        "Validation",
        "validation_ssim",
        "Structural similarity",
        r"validation/(ms_)?ssim",
        "SSIM and MS-SSIM of reconstructions by the averaged weights; 1 means equal to the image.",
    ),
    Group(
        "Validation",
        "validation_rate",
        "Rate on held-out images",
        r"validation/rate(_channel_\d+)?",
        "Price of the latent, in total and for each group of the bottleneck. A Gaussian bottleneck charges the KL "
        "divergence of the posterior from N(0, I), and its groups are the latent channels.",
        "nats per image",
    ),
    Group(
        "Validation",
        "validation_active",
        "Active channels",
        r"validation/active_channels_share",
        "Share of latent channels that vary over the data: of the latent without noise, variance above 0.01.",
    ),
    Group(
        "Validation",
        "validation_spread",
        "Spread of reconstructions",
        r"validation/reconstruction_spread",
        "Standard deviation of the mean colour of reconstructions over images; near 0 the decoder ignores the latent.",
    ),
    Group(
        "Discriminator",
        "adversarial",
        "Adversarial losses",
        "generator|discriminator",
        "Loss of the generator (before its adaptive weight) and loss of the discriminator.",
    ),
    Group(
        "Discriminator",
        "generator_weight",
        "Adaptive weight of the generator's loss",
        "generator_weight",
        "At the decoder's last layer it makes the gradient of this loss as long as that of the reconstruction loss "
        "(Esser et al. 2021).",
        scale="log",
    ),
    Group(
        "Discriminator",
        "logits",
        "Logits",
        r"logits_\w+",
        "Means over patches, for real and reconstructed images; they should stay close.",
    ),
    Group(
        "Discriminator",
        "accuracy",
        "Accuracy of the discriminator",
        "discriminator_accuracy",
        "Share of patches that the discriminator classifies correctly; near 1 it has won and teaches little.",
    ),
    Group(
        "Optimisation",
        "gradient_norm",
        "Gradient norms",
        r"gradient_norm/.*",
        "Length of the whole gradient before clipping.",
        scale="log",
    ),
    Group(
        "Optimisation",
        "learning_rate",
        "Learning rates",
        r"learning_rate/.*",
        "Learning rate of the last step of each row.",
    ),
    Group(
        "Machine",
        "throughput",
        "Throughput",
        r"time/images_per_second",
        "Training images per second, over all processes.",
        "images/s",
    ),
    Group(
        "Machine",
        "memory",
        "Peak memory",
        r"time/peak_gigabytes",
        "Peak memory of the device that PyTorch's allocator counted.",
        "GiB",
    ),
)
OTHERS = "Other values"


def charts(runs: Sequence[RunFolder]) -> dict[str, list[Chart]]:
    """Charts by part of the section. Each chart shows all runs."""
    names = list(dict.fromkeys(name for run in runs for row in run.rows for name in row if name not in NOT_DRAWN))
    parts: dict[str, list[Chart]] = {}
    for group in GROUPS:
        members = [name for name in names if re.fullmatch(group.names, name)]
        lines = [line for name in members for line in _lines(runs, name, alone=len(members) == 1)]
        if lines:
            parts.setdefault(group.part, []).append(_chart(group, lines))
    for name in names:
        if not any(re.fullmatch(group.names, name) for group in GROUPS) and (lines := _lines(runs, name, alone=True)):
            group = Group(OTHERS, name, name, "", "Values that were logged under this name.")
            parts.setdefault(OTHERS, []).append(_chart(group, lines))
    return parts


def counter_sentences(run: RunFolder) -> list[str]:
    """A sentence for each counter that is not zero.

    Broken training samples are counted in broken.jsonl: the log counts anew whenever the trainer is started.
    """
    counts = [(int(run.last(name) or 0), words) for name, words in COUNTERS.items()]
    logged = max((int(row.get("time/broken_samples") or 0) for row in run.rows), default=0)
    replaced = ("broken training image was", "broken training images were", "replaced by another one")
    counts.append((max(run.broken, logged), replaced))
    return [f"{count} {one if count == 1 else several} {what}." for count, (one, several, what) in counts if count]


def _chart(group: Group, lines: list[Line]) -> Chart:
    return Chart(
        name=group.name,
        title=group.title,
        definition=group.definition,
        kind="line",
        x=Axis(title="step"),
        y=Axis(title=group.title, unit=group.unit, scale=group.scale),
        lines=tuple(lines),
    )


def _lines(runs: Sequence[RunFolder], name: str, *, alone: bool) -> list[Line]:
    """alone: whether this is the only metric of its chart, so that the title is label enough."""
    lines = []
    marks = validation_marks(runs) if name.startswith("validation/") else [""] * len(runs)
    for run, mark in zip(runs, marks, strict=True):
        points = [(row["step"], row[name]) for row in run.rows if name in row]
        if any(y is not None for _, y in points):
            whose = f"{run.name} ({mark})" if mark else run.name
            what = "" if alone else name.removeprefix("validation/").rpartition("/")[2].replace("_", " ")
            label = SEPARATOR.join(part for part in (what, whose if len(runs) > 1 else "") if part)
            lines.append(Line(label=label, x=tuple(float(x or 0) for x, _ in points), y=tuple(y for _, y in points)))
    return lines
