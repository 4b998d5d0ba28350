"""What published codecs reach, as their own pages say it, with the data and the protocol of each number.

Numbers of one codec differ by 2 dB between these pages, because resize, crop, rounding and sampling differ. So they say
where a codec of some rate may get, and compare nothing to a tenth of a dB. `ldm-vae evaluate --protocol` measures as
some of these projects do. A number stands here only if the page of a project gives it; second-hand ones are left out.
LDM's page does not name the images; table 8 of its paper (2112.10752) has the same numbers, of ImageNet's validation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page with numbers.

    address: where it stands, without https://.
    protocol: what is known of how its numbers were measured.
    """

    address: str
    protocol: str


@dataclass(frozen=True)
class PublishedResult:
    """A line of a published table; None where it has no such number.

    codec: its usual name.
    factor, channels: f, and numbers at a position of the latent.
    images: the set whose validation images were measured, in RGB.
    side: pixels of their sides.
    psnr: dB.
    """

    codec: str
    factor: int
    channels: int
    images: str
    side: int
    page: Page
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    rfid: float | None = None

    @property
    def rate(self) -> float:
        """Numbers of the latent for each pixel."""
        return self.channels / self.factor**2


LDM = Page(
    "github.com/CompVis/latent-diffusion (README, model zoo)",
    "trained on OpenImages (table 8 of 2112.10752); no script is published; ours for it is "
    "`ldm-vae evaluate --protocol ldm`",
)
SD = Page(
    "huggingface.co/stabilityai/sd-vae-ft-mse (model card)", "5,000 images; SSIM's window and the crop are not given"
)
SDXL = Page(
    "huggingface.co/stabilityai/sdxl-vae (model card)", "5,000 images; SSIM's window and the crop are not given"
)
LAV = Page(
    "github.com/lavinal712/AutoencoderKL (README)",
    "a sample of the posterior; resized, then cropped from the middle; LPIPS by VGG",
)
LITEVAE = Page(
    "github.com/RGenDiff/open-litevae (README)", "bicubic resize, crop from the middle; lines of the paper, 2405.14477"
)
EQVAE = Page("github.com/zelaki/eqvae (README)", "a sample of the posterior, as in the project's eval.py")
DCAE = Page(
    "github.com/mit-han-lab/efficientvit (README of DC-AE)",
    "no posterior; 8-bit values; LPIPS by AlexNet, as torchmetrics has it",
)
VAVAE = Page("github.com/hustvl/LightningDiT (README)", "evaluate_tokenizer.py: `ldm-vae evaluate --protocol vavae`")
COCO, IMAGENET = "COCO 2017", "ImageNet"

PUBLISHED: tuple[PublishedResult, ...] = (
    PublishedResult("LDM kl-f4", 4, 3, IMAGENET, 256, LDM, psnr=27.53, rfid=0.27),
    PublishedResult("LDM kl-f8", 8, 4, IMAGENET, 256, LDM, psnr=24.19, rfid=0.90),
    PublishedResult("LDM kl-f16", 16, 16, IMAGENET, 256, LDM, psnr=24.08, rfid=0.87),
    PublishedResult("LDM kl-f32", 32, 64, IMAGENET, 256, LDM, psnr=22.27, rfid=2.04),
    PublishedResult("SD 1 (kl-f8)", 8, 4, COCO, 256, SD, psnr=23.4, ssim=0.69, rfid=4.99),
    PublishedResult("SD ft-EMA", 8, 4, COCO, 256, SD, psnr=23.8, ssim=0.69, rfid=4.42),
    PublishedResult("SD ft-MSE", 8, 4, COCO, 256, SD, psnr=24.5, ssim=0.71, rfid=4.70),
    PublishedResult("SDXL", 8, 4, COCO, 256, SDXL, psnr=24.7, ssim=0.73, rfid=4.42),
    PublishedResult(
        "SD ft-MSE", 8, 4, IMAGENET, 256, LAV, psnr=26.91, ssim=0.772, lpips=0.130, rfid=0.692
    ),
    PublishedResult(
        "SDXL", 8, 4, IMAGENET, 256, LAV, psnr=27.376, ssim=0.794, lpips=0.122, rfid=0.665
    ),
    PublishedResult(
        "FLUX.1", 8, 16, IMAGENET, 256, LAV, psnr=32.871, ssim=0.924, lpips=0.045, rfid=0.165
    ),
    PublishedResult("EQ-VAE", 8, 4, IMAGENET, 256, EQVAE, psnr=25.95, ssim=0.72, lpips=0.141, rfid=0.82),
    PublishedResult("EQ-VAE, EMA", 8, 4, IMAGENET, 256, EQVAE, psnr=26.15, ssim=0.72, lpips=0.133, rfid=0.55),
    PublishedResult("VAE of LiteVAE", 8, 12, IMAGENET, 256, LITEVAE, psnr=29.25, ssim=0.86, lpips=0.069, rfid=0.95),
    PublishedResult("LiteVAE-B", 8, 12, IMAGENET, 256, LITEVAE, psnr=29.55, ssim=0.87, lpips=0.069, rfid=0.94),
    PublishedResult("VA-VAE", 16, 32, IMAGENET, 256, VAVAE, rfid=0.28),
    PublishedResult(
        "DC-AE f64c128", 64, 128, IMAGENET, 512, DCAE,
        psnr=26.149, ssim=0.7105, lpips=0.0802, rfid=0.2168,
    ),
)  # fmt: skip
FARTHEST = 2.0  # a codec of more than twice the numbers a pixel, or less than half of them, shows nothing


def published_near(factor: int, channels: int, results: Sequence[PublishedResult] = PUBLISHED) -> list[PublishedResult]:
    """The published results of the rate that is nearest to c / f^2, those of the same f first; none beyond FARTHEST."""
    rate = channels / factor**2

    def distance(one: PublishedResult) -> float:
        return abs(math.log(one.rate / rate))

    nearest = min(map(distance, results), default=math.inf)
    if nearest > math.log(FARTHEST):
        return []
    alike = [one for one in results if math.isclose(distance(one), nearest, abs_tol=1e-9)]
    return sorted(alike, key=lambda one: one.factor != factor)
