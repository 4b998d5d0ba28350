"""Group normalisation whose statistics are gathered over a whole picture before any part of it is normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_vae.precision import at_least_float32
from ldm_vae.transfer import to_device


class GatheredNorm:
    """A GroupNorm in two phases: `gather` every strip of the picture once, then `apply` to any part of it.

    Each strip's mean and variance are computed in at least float32 and merged, so that the result depends neither on
    the number of strips nor on their order but for rounding. On a CPU they are merged one by one, in float64. On any
    other device they are merged there, all at once when they are first needed: the host waits for nothing.
    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm
        self.count = 0  # values per group so far
        self.mean = torch.zeros((), dtype=torch.float64)  # (groups,) from the first strip on
        self.squares = torch.zeros((), dtype=torch.float64)  # (groups,), sum of squared differences from the mean
        self._on_device: list[tuple[int, Tensor, Tensor]] = []  # of each strip: count, mean and variance, (1, groups)
        self._per_channel: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def gather(self, x: Tensor) -> None:
        """Adds a strip (1, C, h, w) to the statistics."""
        _, channels, height, width = x.shape
        count = channels // self.norm.num_groups * height * width
        self._per_channel = None
        if x.device.type == "cpu":
            self._merge(x, count)
        else:
            # A view in any memory format, so that nothing is copied. Statistics of half types in float32.
            grouped = rearrange(at_least_float32(x), "b (g c) h w -> b g c h w", g=self.norm.num_groups)
            variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0)
            self._on_device.append((count, mean, variance))
        self.count += count

    def _merge(self, x: Tensor, count: int) -> None:
        """Merges the statistics of a strip on the CPU, which holds so many values per group, into the ones so far."""
        _, channels, height, width = x.shape
        groups = self.norm.num_groups
        strip = at_least_float32(x)
        # As F.group_norm does: the kernel takes dense memory alone, and channels last on the CPU.
        if not strip.is_contiguous(memory_format=torch.channels_last):
            strip = strip.contiguous()
        # The fused kernel also writes a normalised strip, which is not used; it is 50 times faster than var_mean.
        _, mean, rstd = torch.native_group_norm(strip, None, None, 1, channels, height * width, groups, 0.0)
        mean, variance = mean.double().flatten(), rstd.double().flatten().pow(-2)
        total = self.count + count
        step = mean - self.mean
        self.squares = self.squares + variance * count + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of all that was gathered, (groups,)."""
        if not self._on_device:
            return self.mean, self.squares / self.count
        counts, means, variances = zip(*self._on_device, strict=True)
        mean_of, variance_of = torch.cat(means), torch.cat(variances)  # (strips, groups)
        of_strips = torch.tensor([[count / self.count] for count in counts], dtype=mean_of.dtype)
        shares = to_device(of_strips, mean_of.device)
        mean = (mean_of * shares).sum(dim=0)
        return mean, ((variance_of + (mean_of - mean).square()) * shares).sum(dim=0)

    def apply(self, x: Tensor) -> Tensor:
        """Normalises any part (1, C, h, w) of the picture with the statistics of the whole picture."""
        if self._per_channel is None:
            norm, dtype = self.norm, at_least_float32(x).dtype
            repeats = norm.num_channels // norm.num_groups
            mean, variance = (value.repeat_interleave(repeats).to(dtype) for value in self._statistics())
            self._per_channel = mean, variance, norm.weight.to(dtype), norm.bias.to(dtype)
        # Normalisation with given statistics per channel is what batch normalisation does at inference.
        mean, variance, weight, bias = self._per_channel
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.norm.eps)
