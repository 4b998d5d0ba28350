"""The networks as chains of steps that can compute any rows of their output from the rows below them.

Between two steps lies a boundary: the output of one, the input of the next. Rows are counted along the axis that is
cut, 2 (rows of pixels) or 3 (columns); the other one is the cross axis. Every step also says what it costs, so that a
plan can be made before anything is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_vae.nn.blocks import Attention, Level, Middle, ResBlock
from ldm_vae.piecewise.norm import GatheredNorm

CALL = 1.0e7  # operations that could be done in the time it takes to start one convolution


@dataclass(frozen=True)
class Extent:
    """Size of a boundary."""

    channels: int
    rows: int  # along the axis that is cut
    cross: int  # along the other one

    def values(self, rows: int | None = None) -> int:
        """Numbers in so many rows; in all of them by default."""
        return self.channels * self.cross * (self.rows if rows is None else min(rows, self.rows))


class ChainStep(ABC):
    """One step of a chain.

    axis: 2 cuts rows of pixels, 3 columns.
    below: size of the input.
    above: size of the output.
    norm: a norm that must have gathered all of the step's input before `forward` is called; None where there is none.
    beside: values of the input of the level that the step is part of, which the network's own pass holds until the
    level is done; 0 where the step's input is the level's.
    """

    norm: GatheredNorm | None = None
    beside = 0

    def __init__(self, axis: int, below: Extent, above: Extent) -> None:
        self.axis, self.below, self.above = axis, below, above

    @abstractmethod
    def needs(self, first: int, end: int) -> tuple[int, int]:
        """The input rows that output rows [first, end) need."""

    @abstractmethod
    def rows_below(self, rows: int) -> int:
        """Upper bound on the number of input rows that this number of output rows needs."""

    @abstractmethod
    def forward(self, x: Tensor, first: int, end: int) -> Tensor:
        """x: input rows `needs(first, end)` -> output rows [first, end)."""

    @abstractmethod
    def operations(self, rows: int) -> float:
        """Multiplications and additions for this number of output rows."""

    @abstractmethod
    def working(self, rows: int) -> int:
        """Upper bound on the values that `forward` holds at once for this number of output rows.

        Input and output count, and so do the copies of input, output and weight that convolution libraries make.
        """

    @abstractmethod
    def whole(self) -> int:
        """Values that the network's own layer holds at once for the whole picture; input and output count.

        What convolution libraries copy does not: it depends on the library.
        """


class ConvolutionStep(ChainStep):
    """Convolution of stride 1, after GroupNorm and SiLU where there is a norm."""

    def __init__(self, axis: int, below: Extent, conv: nn.Conv2d, norm: nn.GroupNorm | None = None) -> None:
        super().__init__(axis, below, replace(below, channels=conv.out_channels))
        self.conv = conv
        self.norm = None if norm is None else GatheredNorm(norm)
        self.halo = conv.kernel_size[0] // 2

    def needs(self, first: int, end: int) -> tuple[int, int]:
        return max(first - self.halo, 0), min(end + self.halo, self.below.rows)

    def rows_below(self, rows: int) -> int:
        return rows + 2 * self.halo

    def forward(self, x: Tensor, first: int, end: int) -> Tensor:
        if self.norm is not None:
            x = F.silu(self.norm.apply(x), inplace=True)
        low, high = self.needs(first, end)
        missing = (self.halo - (first - low), self.halo - (high - end))  # rows beyond the picture, which are 0
        return convolve(x, self.conv, self.axis, missing, (self.halo, self.halo))

    def operations(self, rows: int) -> float:
        return CALL + 2.0 * self.conv.weight.numel() * self.above.cross * rows

    def working(self, rows: int) -> int:
        below = self.below.values(self.rows_below(rows))
        padded = below + 2 * self.halo * self.below.channels * self.below.cross
        above = self.above.values(rows)
        library = padded + above + self.conv.weight.numel()
        return below + 2 * padded + above + library

    def whole(self) -> int:
        below, above = self.below.values(), self.above.values()
        return below + above if self.norm is None else below + max(2 * below, below + above)


class ResidualStep(ChainStep):
    """A residual block: two normalised convolutions, added to a shortcut.

    hidden_norm: the norm between the convolutions.
    """

    def __init__(self, axis: int, below: Extent, block: ResBlock) -> None:
        self.first = ConvolutionStep(axis, below, block.conv1, block.norm1)
        self.second = ConvolutionStep(axis, self.first.above, block.conv2, block.norm2)
        self.conv_shortcut = block.conv_shortcut
        assert self.second.norm is not None
        self.hidden_norm = self.second.norm
        super().__init__(axis, below, self.second.above)
        self.norm = self.first.norm

    def needs(self, first: int, end: int) -> tuple[int, int]:
        return self.first.needs(*self.second.needs(first, end))

    def rows_below(self, rows: int) -> int:
        return rows + 4

    def forward(self, x: Tensor, first: int, end: int) -> Tensor:
        low, high = self.second.needs(first, end)
        hidden = self.first.forward(x, low, high)
        shortcut = self.shortcut(x.narrow(self.axis, first - self.needs(first, end)[0], end - first))
        return self.join(hidden, shortcut, first, end)

    def shortcut(self, x: Tensor) -> Tensor:
        """Rows of the input -> the same rows of the shortcut."""
        return x if self.conv_shortcut is None else cast(Tensor, self.conv_shortcut(x))

    def join(self, hidden: Tensor, shortcut: Tensor, first: int, end: int) -> Tensor:
        """Output rows [first, end).

        hidden: rows `second.needs(first, end)` of the hidden activation.
        shortcut: rows [first, end) of the shortcut.
        """
        return self.second.forward(hidden, first, end).add_(shortcut)

    def operations(self, rows: int) -> float:
        shortcut = 0 if self.conv_shortcut is None else self.conv_shortcut.weight.numel()
        joined = self.second.operations(rows) + CALL + 2.0 * shortcut * self.above.cross * rows
        return self.first.operations(rows + 2) + joined

    def working(self, rows: int) -> int:
        shortcut = self.below.values(rows) + 2 * self.above.values(rows)  # the result, and the library's copies
        return self.below.values(rows + 4) + shortcut + max(self.first.working(rows + 2), self.second.working(rows))

    def whole(self) -> int:
        return max(self.first.whole(), self.below.values() + self.second.whole())


class UpsampleStep(ChainStep):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, axis: int, below: Extent, conv: nn.Conv2d) -> None:
        super().__init__(axis, below, Extent(conv.out_channels, 2 * below.rows, 2 * below.cross))
        self.convolution = ConvolutionStep(axis, replace(self.above, channels=below.channels), conv)

    def needs(self, first: int, end: int) -> tuple[int, int]:
        low, high = self.convolution.needs(first, end)
        return low // 2, (high - 1) // 2 + 1

    def rows_below(self, rows: int) -> int:
        return (rows + 2) // 2 + 1

    def forward(self, x: Tensor, first: int, end: int) -> Tensor:
        low, high = self.convolution.needs(first, end)
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.convolution.forward(doubled.narrow(self.axis, low % 2, high - low), first, end)

    def operations(self, rows: int) -> float:
        return self.convolution.operations(rows)

    def working(self, rows: int) -> int:
        return (
            self.below.values(self.rows_below(rows))
            + self.convolution.below.values(rows + 4)
            + self.convolution.working(rows)
        )

    def whole(self) -> int:
        return self.below.values() + self.convolution.whole()


class DownsampleStep(ChainStep):
    """Halves height and width: a convolution of stride 2, padded at the end of both axes."""

    def __init__(self, axis: int, below: Extent, conv: nn.Conv2d) -> None:
        super().__init__(axis, below, Extent(conv.out_channels, below.rows // 2, below.cross // 2))
        self.conv = conv

    def needs(self, first: int, end: int) -> tuple[int, int]:
        return 2 * first, min(2 * end + 1, self.below.rows)

    def rows_below(self, rows: int) -> int:
        return 2 * rows + 1

    def forward(self, x: Tensor, first: int, end: int) -> Tensor:
        _, high = self.needs(first, end)
        return convolve(x, self.conv, self.axis, (0, 2 * end + 1 - high), (0, 1))

    def operations(self, rows: int) -> float:
        return CALL + 2.0 * self.conv.weight.numel() * self.above.cross * rows

    def working(self, rows: int) -> int:
        padded = self.below.values(2 * rows + 1) + self.below.channels * (self.below.cross + 2 * rows + 2)
        return 3 * padded + 2 * self.above.values(rows) + self.conv.weight.numel()

    def whole(self) -> int:
        return 2 * self.below.values() + self.above.values()


class AttentionStep(ChainStep):
    """Attention. Queries are computed some rows at a time, after `remember` has got all rows for keys and values."""

    def __init__(self, axis: int, below: Extent, attention: Attention) -> None:
        super().__init__(axis, below, below)
        self.attention = attention
        self.norm: GatheredNorm = GatheredNorm(attention.group_norm)
        self.keys: Tensor | None = None  # (1, 1, positions, C), in the order of `remember`
        self.values: Tensor | None = None
        self._known = 0  # positions

    def needs(self, first: int, end: int) -> tuple[int, int]:
        return first, end

    def rows_below(self, rows: int) -> int:
        return rows

    def remember(self, x: Tensor) -> None:
        """Keeps keys and values of the input rows x. Attention does not depend on the order of positions."""
        tokens = self._tokens(x)
        if self.keys is None or self.values is None:
            shape = (1, 1, self.below.rows * self.below.cross, self.below.channels)
            self.keys, self.values = tokens.new_empty(shape), tokens.new_empty(shape)
        known = slice(self._known, self._known + tokens.shape[1])
        self.keys[0, :, known] = self.attention.to_k(tokens)
        self.values[0, :, known] = self.attention.to_v(tokens)
        self._known = known.stop

    def forward(self, x: Tensor, first: int, end: int) -> Tensor:
        assert self.keys is not None and self.values is not None
        query = self.attention.to_q(self._tokens(x)).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, self.keys, self.values).squeeze(1)
        return x + rearrange(self.attention.to_out[0](mixed), "b (h w) c -> b c h w", h=x.shape[2])

    def forget(self) -> None:
        """Frees keys and values."""
        self.keys, self.values, self._known = None, None, 0

    def operations(self, rows: int) -> float:
        positions, channels = self.below.rows * self.below.cross, self.below.channels
        return CALL + 4.0 * rows * self.below.cross * channels * (positions + 2 * channels)

    def working(self, rows: int) -> int:
        return 8 * self.below.values(rows) + self.below.channels**2

    def whole(self) -> int:
        return 8 * self.below.values()  # input, tokens, queries, keys, values, their mixture, its projection, the sum

    def _tokens(self, x: Tensor) -> Tensor:
        return rearrange(self.norm.apply(x), "b c h w -> b (h w) c")


def convolve(x: Tensor, conv: nn.Conv2d, axis: int, missing: tuple[int, int], cross: tuple[int, int]) -> Tensor:
    """conv(x), with zeros for `missing` rows before and after along `axis` and `cross` along the other."""
    (before, after), (left, right) = (missing, cross) if axis == 2 else (cross, missing)
    if (before, left) != (after, right):  # a convolution can only pad both sides equally
        same = (min(before, after), min(left, right))
        x = F.pad(x, (left - same[1], right - same[1], before - same[0], after - same[0]))
        before, left = same
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, (before, left))


class Chain:
    """A network as steps, which are added from the input to the output.

    channels, height, width: size of the input. It is cut along its longer side.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.axis = 2 if height >= width else 3
        self.extent = Extent(channels, max(height, width), min(height, width))
        self.steps: list[ChainStep] = []
        self._level = self.extent  # the input of the level that steps are added to

    def add(self, kind: Callable[..., ChainStep], *modules: nn.Module) -> None:
        step = kind(self.axis, self.extent, *modules)
        step.beside = 0 if self._level is self.extent else self._level.values()
        self.steps.append(step)
        self.extent = step.above

    def add_blocks(self, blocks: Level | Middle) -> None:
        """Attention follows each residual block of a level, and the first of the middle."""
        self._level = self.extent
        for i, resnet in enumerate(blocks.resnets):
            self.add(ResidualStep, resnet)
            if i < len(blocks.attentions):
                self.add(AttentionStep, blocks.attentions[i])
