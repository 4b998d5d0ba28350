"""Versions and machine with which the report is made. The machine of the run is in its status."""

from __future__ import annotations

import os
import platform

from ldm_vae.devices import names_of_devices
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
    return {
        "host": platform.node() or "unknown",
        "system": platform.platform(),
        "processor": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        if hasattr(os, "sched_getaffinity")
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "accelerators": ", ".join(names_of_devices()) or "none",
        "Python": platform.python_version(),
        **{package: version_of(package) or "not installed" for package in PACKAGES},
    }
