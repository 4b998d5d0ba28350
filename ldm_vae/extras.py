"""Packages that the base installation leaves out: where one is missing, a line names the command that installs it.

An extra is what a person does: train, measure, write a report. pyproject.toml says which packages each one installs;
`tests/test_extras.py` compares the names below, under which they are imported, with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from ldm_vae.errors import UserError

Extra = Literal["metrics", "train", "report", "raster", "family", "s3", "gs", "wandb", "trackio"]
METRICS = ("torchmetrics", "torch_fidelity", "scipy")
PACKAGES: dict[Extra, tuple[str, ...]] = {
    "metrics": METRICS,
    "train": (*METRICS, "tensorboard"),
    "report": ("matplotlib", "jinja2"),
    "raster": ("tifffile", "imagecodecs"),
    "family": ("sklearn",),
    "s3": ("s3fs",),
    "gs": ("gcsfs",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # name of an import -> the distribution, where an installer needs another


class MissingExtra(UserError):
    """A package of an extra is not installed."""


@contextmanager
def extra(name: Extra, purpose: str = "") -> Iterator[None]:
    """Around imports of the packages of an extra. Raises MissingExtra where one of them is not installed.

    Any other error passes: a package that is there and cannot be imported is broken, and no extra mends it.

    purpose: what needs them, for the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES[name] or is_installed(package):
            raise
        raise _missing(package, name, purpose) from None


def require(name: Extra, purpose: str = "", *, package: str | None = None) -> None:
    """Raises MissingExtra where an extra is not installed: before any work is done. It imports nothing.

    purpose: what needs it, for the message.
    package: the one of its packages that is needed; None for all of them.
    """
    for needed in PACKAGES[name] if package is None else (package,):
        if not is_installed(needed):
            raise _missing(needed, name, purpose)


def install_command(name: Extra) -> str:
    """What a person types to install an extra."""
    return f'pip install "ldm-vae[{name}]"'


def is_installed(package: str) -> bool:
    """Whether a package can be found. A folder of its name, such as the `wandb` that runs leave, is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _missing(package: str, name: Extra, purpose: str) -> MissingExtra:
    what = f"{package} is not installed"
    return MissingExtra(f"{purpose}: {what}" if purpose else what, install_command(name))
