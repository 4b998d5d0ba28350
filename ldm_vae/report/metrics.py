"""What the metrics are called on the page, their units, and which way is better."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Fact(NamedTuple):
    title: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""


FACTS = {
    "psnr": Fact("PSNR", "dB", "higher"),
    "psnr_pooled": Fact("PSNR, pooled", "dB", "higher"),
    "ssim": Fact("SSIM", "", "higher"),
    "ms_ssim": Fact("MS-SSIM", "", "higher"),
    "lpips_vgg": Fact("LPIPS (VGG)", "", "lower"),
    "lpips_alex": Fact("LPIPS (AlexNet)", "", "lower"),
    "rfid": Fact("rFID", "", "lower"),
    "kid": Fact("KID", "", "lower"),
    "frechet_vgg16": Fact("Fréchet distance, VGG16", "", "lower"),
}
HEADLINES = ("psnr", "lpips_vgg", "lpips_alex", "rfid", "ssim")  # of the summary, the first four that are there


def fact(name: str) -> Fact:
    """Of a metric that this report does not know, its name."""
    return FACTS.get(name, Fact(name))
