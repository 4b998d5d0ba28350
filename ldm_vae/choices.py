"""What options and fields of recipes choose among, by name: the command line shows it without the code behind it.

A name stands here where an option offers it. The module that gives it its meaning imports it.
"""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["float32", "bfloat16"]  # of a network's arithmetic
FORMER_PRECISIONS = {"no": "float32", "fp32": "float32", "bf16": "bfloat16"}  # words of 0.1.0 -> of today

ResizeFilter = Literal["bicubic", "bilinear", "lanczos", "area", "bilinear_aliased"]  # data/images/fit.py
RESIZE_FILTERS: tuple[ResizeFilter, ...] = get_args(ResizeFilter)
DEFAULT_FILTER: ResizeFilter = "bicubic"

ScaleKind = Literal["factor", "shift", "channel"]  # bottlenecks/scale.py, in the order of its table
Target = Literal["sd", "sdxl", "sd3", "flux", "dit"]  # interop/pipelines.py
LatentKind = Literal["moments", "mode", "sample"]  # latents/format.py

MetricName = Literal["psnr", "ssim", "ssim_signed", "ssim_uniform", "ms_ssim", "lpips_vgg", "lpips_alex"]
IMAGE_METRICS: tuple[MetricName, ...] = get_args(MetricName)  # metrics/image.py
# Validation takes these alone, and all else measures them by default: variants of SSIM are for published protocols.
UsualMetricName = Literal["psnr", "ssim", "ms_ssim", "lpips_vgg", "lpips_alex"]
USUAL_IMAGE_METRICS: tuple[UsualMetricName, ...] = get_args(UsualMetricName)
SetMetricName = Literal["rfid", "rfid_pytorch", "kid", "frechet_vgg16"]
SET_METRICS: tuple[SetMetricName, ...] = get_args(SetMetricName)  # metrics/sets.py
USUAL_SET_METRICS: tuple[SetMetricName, ...] = ("rfid", "kid", "frechet_vgg16")
PublishedProtocol = Literal["ldm", "vavae", "seed", "titok"]  # evaluation/protocols.py
PUBLISHED_PROTOCOLS: tuple[PublishedProtocol, ...] = get_args(PublishedProtocol)
