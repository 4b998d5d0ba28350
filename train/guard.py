"""The non-finite guard: a step whose gradient holds NaN or infinity changes nothing, is counted, and may stop the run.

Gradients are averaged over ranks before they are judged, so that all ranks see the same norm and agree by themselves.
Flags stay on the device; the host looks at them only where it waits for the log anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ldm_vae.data.stream.batch import Batch


class Guard:
    """Counts the steps that were not finite, restores the buffers after them, and remembers the latest steps' samples.

    patience: number of non-finite steps in a row after which the run is to stop.
    look: number of steps between two checks by the host.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device, patience: int, look: int) -> None:
        self.patience = patience
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.longest = torch.zeros((), dtype=torch.int64, device=device)  # most bad steps in a row so far
        self.longest_end = torch.zeros((), dtype=torch.int64, device=device)  # the last step of these
        self.samples: deque[tuple[int, list[str]]] = deque(maxlen=patience + look)
        self.modules = list(modules)
        self._good = [buffer.clone() for buffer in self._buffers()]

    @staticmethod
    def judge(norms: Iterable[Tensor]) -> Tensor:
        """Gradient norms of a step -> scalar bool on the device, true where all are finite."""
        return torch.stack([norm.isfinite() for norm in norms]).all()

    @torch.no_grad()
    def conclude(self, finite: Tensor, step: int, micro_batches: list[Batch]) -> None:
        """Closes a step: counts it, restores the buffers where it was bad, notes which samples it saw."""
        self.skipped += ~finite
        self.in_a_row.copy_(torch.where(finite, 0, self.in_a_row + 1))
        self.longest_end.copy_(torch.where(self.in_a_row > self.longest, step, self.longest_end))
        self.longest.copy_(torch.maximum(self.longest, self.in_a_row))
        for buffer, good in zip(self._buffers(), self._good, strict=True):
            good.copy_(torch.where(finite, buffer, good))
            buffer.copy_(good)
        self.samples.append((step, [key for batch in micro_batches for key in batch.key]))

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the buffers what they had after the last good step."""
        for buffer, good in zip(self._buffers(), self._good, strict=True):
            buffer.copy_(good)

    def _buffers(self) -> Iterator[Tensor]:
        """The buffers that the modules have now: `learn` and `module.to(device)` may replace them."""
        return (buffer for module in self.modules for buffer in module.buffers())

    def exhausted(self) -> bool:
        """Whether there were `patience` bad steps in a row, now or since the last check. Waits for the device."""
        return int(self.longest) >= self.patience

    def suspects(self) -> dict[str, list[str]]:
        """Keys of this rank's samples in the longest row of bad steps, by optimizer step."""
        end = int(self.longest_end)
        start = end - int(self.longest)
        return {str(step): keys for step, keys in self.samples if start < step <= end}
