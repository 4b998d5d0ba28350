"""Group normalisation whose statistics are gathered over a whole picture before any part of it is normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.devices import in_float64
from ldm_vae.precision import at_least_float32


class GatheredNorm:
    """A GroupNorm in two phases: `gather` every strip of the picture once, then `apply` to any part of it.

    Each strip's mean and variance are computed in at least float32 and merged in float64, so that the result depends
    neither on the number of strips nor on their order but for rounding.
    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm
        self.count = 0  # values per group so far
        self.mean = torch.zeros((), dtype=torch.float64)  # (groups,) from the first strip on
        self.squares = torch.zeros((), dtype=torch.float64)  # (groups,), sum of squared differences from the mean
        self._per_channel: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def gather(self, x: Tensor) -> None:
        """Adds a strip (1, C, h, w) to the statistics."""
        _, channels, height, width = x.shape
        groups = self.norm.num_groups
        strip = at_least_float32(x)
        # As F.group_norm does: the kernel takes dense memory alone, and channels last on the CPU alone.
        if strip.device.type != "cpu" or not strip.is_contiguous(memory_format=torch.channels_last):
            strip = strip.contiguous()
        # The fused kernel also writes a normalised strip, which is not used; it is 50 times faster than var_mean.
        _, mean, rstd = torch.native_group_norm(strip, None, None, 1, channels, height * width, groups, 0.0)
        mean, variance = in_float64(mean).flatten(), in_float64(rstd).flatten().pow(-2)
        count = channels // groups * height * width
        total = self.count + count
        step = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + variance * count + step.square() * (self.count * count / total)
        self.mean = self.mean.to(mean) + step * (count / total)
        self.count = total
        self._per_channel = None

    def apply(self, x: Tensor) -> Tensor:
        """Normalises any part (1, C, h, w) of the picture with the statistics of the whole picture."""
        if self._per_channel is None:
            norm, dtype = self.norm, at_least_float32(x).dtype
            repeats = norm.num_channels // norm.num_groups
            mean, variance = (
                value.repeat_interleave(repeats).to(x.device, dtype) for value in (self.mean, self.squares / self.count)
            )
            self._per_channel = mean, variance, norm.weight.to(dtype), norm.bias.to(dtype)
        # Normalisation with given statistics per channel is what batch normalisation does at inference.
        mean, variance, weight, bias = self._per_channel
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.norm.eps)
