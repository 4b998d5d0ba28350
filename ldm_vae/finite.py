"""What a network computes, finite: half types that overflow are computed again in float32."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm_vae.arithmetic import exact_float32
from ldm_vae.checks import open_checks
from ldm_vae.devices import has_float64
from ldm_vae.errors import UserError
from ldm_vae.networks.network import Network
from ldm_vae.precision import at_least_float32, name_of_type, without_autocast
from ldm_vae.transfer import to_device

logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """A result holds NaN or infinity, even when computed in float32.

    samples: places in the batch of the samples that have no finite result.
    """

    def __init__(self, what: str, samples: list[int]) -> None:
        super().__init__(f"{what} of sample {', '.join(map(str, samples))} of the batch is not finite", "leave it out")
        self.samples = samples


@exact_float32()
@torch.no_grad()
def run_finite(
    network: Callable[[Network, Tensor], Tensor], model: Network, x: Tensor, device: torch.device, what: str
) -> tuple[Tensor, list[int]]:
    """Returns network(model, x) in at least float32, and the places of the samples that are not finite.

    The network runs in the model's type; samples that come out not finite are computed again in float32. Neither is
    rounded to TF32. Among checks that are read later (`checks.py`), none is said to be not finite.

    what: what is computed, for the warning.
    """
    x = to_device(x if has_float64(device) or x.dtype != torch.float64 else x.float(), device)
    with without_autocast(device):
        result = at_least_float32(network(model, x.to(model.dtype)))
        if (checks := open_checks()) is not None:
            checks.require(finite_samples(result))
            return result, []
        broken = not_finite(result)
        if broken and model.dtype in (torch.bfloat16, torch.float16):
            given = len(broken), len(x), what, name_of_type(model.dtype)
            logger.warning("%d of %d %s are not finite in %s: computed again in float32", *given)
            # A copy that was kept would not know of weights that somebody has changed since.
            again = network(copy.deepcopy(model).float(), x[broken].float())
            result[broken] = again
            broken = [broken[i] for i in not_finite(again)]
    return result, broken


def not_finite(x: Tensor) -> list[int]:
    """Places in the batch that hold NaN or infinity. Takes one transfer from the device, and no memory."""
    return [place for place, finite in enumerate(finite_samples(x).tolist()) if not finite]


def finite_samples(x: Tensor) -> Tensor:
    """(B, ...) -> (B,), bool: whether a sample holds neither NaN nor infinity."""
    if x.numel() == 0:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    dims = tuple(range(1, x.ndim))
    return x.amax(dims).isfinite() & x.amin(dims).isfinite()  # NaN is both where there is one; and it takes no memory


def at_places(x: Tensor, places: Sequence[int]) -> Tensor:
    """x[places], places in ascending order; all of x as it is, since a device waits for the list of places."""
    return x if len(places) == len(x) else x[list(places)]
