"""Versions and machine with which the report is made. The machine of the run is in its status."""

from __future__ import annotations

import os
import platform

import torch

from ldm_vae.versions import version_of

PACKAGES = (
    "ldm-vae",
    "torch",
    "torchvision",
    "diffusers",
    "lpips",
    "torchmetrics",
    "torch-fidelity",
    "numpy",
    "Pillow",
)


def describe_environment() -> dict[str, str]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node() or "unknown",
        "system": platform.platform(),
        "processor": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        if hasattr(os, "sched_getaffinity")
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "accelerators": ", ".join(gpus) or "none",
        "Python": platform.python_version(),
        **{package: version_of(package) or "not installed" for package in PACKAGES},
    }
