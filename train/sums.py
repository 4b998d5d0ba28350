"""Sums as exact as float64, on devices that have no float64, too."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm_vae.devices import has_float64, in_float64
from train.together import gather_together


class RunningSum:
    """A sum of tensors of one shape on their device. To add one never waits for the device.

    The sum is in float64. Where there is none, it is two float32 numbers: a sum, and what rounding took from it.
    Source: Ogita, Rump & Oishi 2005, "Accurate sum and dot product", algorithm 4.1. Check: tests/train/test_sums.py.
    """

    def __init__(self, first: Tensor, *, wide: bool | None = None) -> None:
        """
        first: the first summand.
        wide: whether the sum is in float64; None: where the device has it.
        """
        self.wide = has_float64(first.device) if wide is None else wide
        self.sum = first.double() if self.wide else first.float()
        self.lost = torch.zeros(()) if self.wide else torch.zeros_like(self.sum)

    def add(self, value: Tensor) -> None:
        if self.wide:
            self.sum = self.sum + value.double()
            return
        total = self.sum + value.float()
        grown = total - self.sum
        self.lost = self.lost + ((self.sum - (total - grown)) + (value.float() - grown))
        self.sum = total

    def total(self) -> Tensor:
        """The sum in float64: on its device, or on the CPU if the device has none."""
        return self.sum if self.wide else in_float64(self.sum) + in_float64(self.lost)

    @staticmethod
    def of(total: Tensor, device: torch.device) -> RunningSum:
        """A sum on a device that goes on from a total, on the CPU in float64."""
        if has_float64(device):
            return RunningSum(total.to(device))
        rounded = total.float()
        running = RunningSum(rounded.to(device))
        running.lost = (total - rounded.double()).float().to(device)
        return running


def sum_over_ranks(accelerator: Accelerator, value: Tensor) -> Tensor:
    """(...) in float64 -> its sum over all ranks, where the value is. All must call."""
    if has_float64(accelerator.device):
        total: Tensor = accelerator.reduce(value, "sum")
        return total
    return gather_together({"sum": value}, accelerator)["sum"].sum(dim=0)
