"""What each metric is called, its unit, and whether higher or lower is better."""

from __future__ import annotations

from typing import Literal, NamedTuple


class MetricDescription(NamedTuple):
    """How a metric is shown.

    title: its name in tables.
    unit: empty if it has none.
    better: whether higher or lower values are better; empty if neither is.
    decimals: how many of them a terminal shows.
    """

    title: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    decimals: int = 4

    @property
    def arrow(self) -> str:
        """Points to where values are better; empty if neither way is."""
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]


METRIC_DESCRIPTIONS = {
    "psnr": MetricDescription("PSNR", "dB", "higher", 2),
    "psnr_pooled": MetricDescription("PSNR, pooled", "dB", "higher", 2),
    "ssim": MetricDescription("SSIM", "", "higher"),
    "ssim_signed": MetricDescription("SSIM on [-1, 1]", "", "higher"),
    "ssim_uniform": MetricDescription("SSIM, 7x7 windows", "", "higher"),
    "ms_ssim": MetricDescription("MS-SSIM", "", "higher"),
    "lpips_vgg": MetricDescription("LPIPS (VGG)", "", "lower"),
    "lpips_alex": MetricDescription("LPIPS (AlexNet)", "", "lower"),
    "rfid": MetricDescription("rFID", "", "lower", 2),
    "rfid_pytorch": MetricDescription("rFID, pytorch-fid", "", "lower", 2),
    "kid": MetricDescription("KID", "", "lower"),
    "bound": MetricDescription("ELBO", "nats", "higher", 2),
    "importance_bound": MetricDescription("importance-weighted bound", "nats", "higher", 2),
    "bits_per_dimension": MetricDescription("bits per dimension", "", "lower"),
    "rate": MetricDescription("rate", "nats", "", 2),
    "active_units": MetricDescription("active units", "", "", 0),
    "frechet_vgg16": MetricDescription("Fréchet distance, VGG16", "", "lower"),
}


def describe_metric(name: str) -> MetricDescription:
    """The description of a metric; one that is not listed here is called by its name."""
    return METRIC_DESCRIPTIONS.get(name, MetricDescription(name))
