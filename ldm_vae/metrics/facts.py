"""What metrics are called, their units, and which way is better."""

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


def fact(name: str) -> Fact:
    """Of a metric that is not known here, its name."""
    return FACTS.get(name, Fact(name))
