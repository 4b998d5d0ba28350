"""Protocols of published tables, for numbers to stand beside theirs: what each project's own script computes.

Each holds what its source does to a picture before the codec sees it, what of the posterior it decodes, how values are
rounded, and which definitions of the metrics it uses. The reference of a Fréchet distance is always the set of the
images as the codec saw them.

ldm    CompVis/latent-diffusion a506df5, ldm/data/imagenet.py and taming's albumentations. There is no script that
       evaluates: the rounding is that of `custom_to_pil`, the distance torch-fidelity's, as the paper says. The PSIM of
       its table has no published definition, and is left out
vavae  hustvl/LightningDiT 2725fed, evaluate_tokenizer.py: SSIM and LPIPS of values that are not rounded, a posterior's
       sample, batches of 8, features in batches of 50
seed   TencentARC/SEED-Voken b9a17ea, evaluation_image.py: LPIPS and features of values that are not rounded, PSNR and
       SSIM of truncated ones, batches of 4
titok  bytedance/1d-tokenizer 942a96f, evaluator/evaluator.py: a Fréchet distance alone, in float64

The scripts average over batches, so their last, smaller batch has more weight; here every image has the same. Networks
are in evaluation mode, so batches change nothing but the last digits.
Check: tests/evaluation/test_protocols.py, against each script's formulas, and `python -m tools.published_protocols`,
against the scripts themselves.
"""

from __future__ import annotations

from ldm_vae.choices import PublishedProtocol
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.evaluation.results import EvaluationProtocol

SIDE = 256  # pixels of a side, in all of them

_IMAGES: dict[PublishedProtocol, ImageConfig] = {
    "ldm": ImageConfig(resize_filter="bilinear_aliased", resize_rounding="8bit"),
    "vavae": ImageConfig(resize_filter="bilinear"),
    "seed": ImageConfig(resize_filter="bilinear", resize_rounding="8bit"),
    "titok": ImageConfig(resize_filter="bicubic", resize_rounding="8bit"),
}
_MEASURES: dict[PublishedProtocol, EvaluationProtocol] = {
    "ldm": EvaluationProtocol(
        metrics=("psnr", "rfid"), latent="sample", rounding={"psnr": "truncated", "rfid": "truncated"}
    ),
    "vavae": EvaluationProtocol(
        metrics=("psnr", "ssim_signed", "lpips_vgg", "rfid_pytorch"),
        latent="sample",
        rounding={"psnr": "upward", "ssim_signed": "clamped", "lpips_vgg": "decoded", "rfid_pytorch": "upward"},
    ),
    "seed": EvaluationProtocol(
        metrics=("psnr", "ssim_uniform", "lpips_vgg", "lpips_alex", "rfid_pytorch"),
        rounding={
            "psnr": "truncated",
            "ssim_uniform": "truncated",
            "lpips_vgg": "clamped",
            "lpips_alex": "clamped",
            "rfid_pytorch": "clamped",
        },
    ),
    "titok": EvaluationProtocol(metrics=("rfid",), latent="sample"),
}


def published_protocol(name: PublishedProtocol, *, channels: int = 3, seed: int = 0) -> EvaluationProtocol:
    """The protocol of that name. A codec without a posterior is decoded from its latent, as in the scripts.

    channels: image channels of the codec.
    seed: of the posterior's samples.
    """
    size = {"channels": channels, "resize": SIDE, "crop": SIDE, "crop_mode": "center"}
    image = _IMAGES[name].model_copy(update=size)
    return _MEASURES[name].model_copy(update={"name": name, "image": image, "seed": seed})
