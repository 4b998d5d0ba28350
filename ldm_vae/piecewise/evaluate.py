"""Evaluates a network by a plan: norm statistics of the whole picture first, then rows from rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ldm_vae.arithmetic import exact_float32
from ldm_vae.networks.network import Network
from ldm_vae.piecewise.chains.chain import chains_of
from ldm_vae.piecewise.plan import Plan, Segment, plan_decode, plan_encode
from ldm_vae.piecewise.room import Room
from ldm_vae.piecewise.spill import HostMemory, SpilledStrips
from ldm_vae.piecewise.steps import AttentionStep, ChainStep, ResidualStep
from ldm_vae.piecewise.strips import Strips, Whole, cuts
from ldm_vae.precision import at_least_float32


@exact_float32()
@torch.no_grad()
def decode_pieces(model: Network, z: Tensor, *, max_memory: int | None = None, held: int = 0) -> tuple[Tensor, Plan]:
    """Evaluates `model.decode` in pieces, one picture after the other, without gradients.

    z: (B, c, h, w), raw.
    max_memory: bound in bytes on what is taken beside weights and input; the result counts.
    None: nothing is computed twice, and pictures too small to be cut (plan.strips is 1) run as one batch.
    held: bytes of the bound that the caller needs for itself.
    Returns (B, C, h*f, w*f) in at least float32, and the plan that was followed for each picture.
    Raises UserError for a bound that is too low, and names the lowest that is possible.
    """
    batch, _, height, width = z.shape
    factor = model.config.factor
    shape = (batch, model.config.out_channels, height * factor, width * factor)
    plan = plan_decode(model, height, width, max_memory=max_memory, beside=held + _bytes_of_result(shape, z))
    if plan.strips == 1 and max_memory is None:
        return at_least_float32(model.decode(z)), plan
    output = z.new_empty(shape, dtype=_type_of_result(z))
    memory = _Memory(max_memory, held, z.device)
    for i in range(batch):
        steps = chains_of(model).decoder_steps(model, height, width)
        run_plan(plan, steps, z[i : i + 1], output[i : i + 1], model.likelihood.mean, memory)
    return output, plan


@exact_float32()
@torch.no_grad()
def encode_pieces(
    model: Network, images: Tensor, *, max_memory: int | None = None, held: int = 0
) -> tuple[Tensor, Plan]:
    """Evaluates `model.encode` in pieces; otherwise like `decode_pieces`.

    images: (B, C, H, W) in [-1, 1].
    Returns (B, width * c, H/f, W/f), rounded down, in at least float32: the bottleneck's input; and the plan.
    """
    batch, _, height, width = images.shape
    factor = model.config.factor
    shape = (batch, model.bottleneck.width * model.config.latent_channels, height // factor, width // factor)
    plan = plan_encode(model, height, width, max_memory=max_memory, beside=held + _bytes_of_result(shape, images))
    if plan.strips == 1 and max_memory is None:
        return at_least_float32(model.encode(images)), plan
    output = images.new_empty(shape, dtype=_type_of_result(images))
    memory = _Memory(max_memory, held, images.device)
    for i in range(batch):
        steps = chains_of(model).encoder_steps(model, height, width)
        run_plan(plan, steps, images[i : i + 1], output[i : i + 1], memory=memory)
    return output, plan


def _type_of_result(x: Tensor) -> torch.dtype:
    """At least float32: a half type's strips are converted where they are written, so that no second copy is needed."""
    return torch.promote_types(x.dtype, torch.float32)


def _bytes_of_result(shape: Sequence[int], x: Tensor) -> int:
    return math.prod(shape) * _type_of_result(x).itemsize


class _Memory:
    """What the pictures of a call share of the host's memory.

    room: where freed memory is to be handed back to the system in time. On another device than the CPU, the bound is on
    the memory there, of which this process has none.
    spilled: what holds the boundaries that a GPU has no room for.
    """

    def __init__(self, max_memory: int | None, held: int, device: torch.device) -> None:
        self.room = Room(None if max_memory is None or device.type != "cpu" else max_memory - held)
        self.spilled = HostMemory()


def run_plan(
    plan: Plan,
    steps: Sequence[ChainStep],
    picture: Tensor,
    output: Tensor,
    finish: Callable[[Tensor], Tensor] | None = None,
    memory: _Memory | None = None,
) -> None:
    """Runs freshly made steps on one picture (1, C, H, W) and writes the result to `output`.

    finish: what is done to each strip of the result before it is written, such as reading a picture from the parameters
    of its pixels; None writes it as it is.
    memory: what this picture shares with others; None shares nothing, and knows no bound.
    """
    memory = memory or _Memory(None, 0, picture.device)
    source: Strips | Whole = Whole(plan.axis, picture)
    for segment in plan.segments:
        end = segment.end == len(steps)
        target = Whole(plan.axis, output, finish) if end else _new_strips(plan, memory)
        _SegmentRun(plan, steps, segment, source, target, memory).run()
        source = target


def _new_strips(plan: Plan, memory: _Memory) -> Strips:
    return SpilledStrips(plan.axis, memory.spilled) if plan.spill else Strips(plan.axis)


class _SegmentRun:
    """Evaluates one segment for one picture. No variable keeps a strip after its use: else it would hold its memory."""

    def __init__(
        self,
        plan: Plan,
        steps: Sequence[ChainStep],
        segment: Segment,
        source: Strips | Whole,
        target: Strips | Whole,
        memory: _Memory,
    ) -> None:
        self.plan, self.steps, self.source, self.target, self.memory = plan, steps, source, target, memory
        self.first, self.end, self.keep_hidden = segment.first, segment.end, segment.keep_hidden

    def run(self) -> None:
        """Runs the passes for the barriers, then the one that computes the segment's end."""
        for k in range(self.first, self.end):
            self._pass_barriers(k)
        last = self.steps[self.end - 1]
        if isinstance(last, ResidualStep) and self.keep_hidden:
            self._finish_through_hidden(last)
        else:
            for rows in self._cuts(last):
                self._append(self._boundary(self.end, *rows))
                self._release(self.end, rows[1])
        self.source.release(self.steps[self.first].below.rows)
        if isinstance(last, AttentionStep):
            last.forget()

    def _pass_barriers(self, k: int) -> None:
        """Gathers what any output of steps[k] needs from the whole picture: norm statistics, keys and values."""
        step = self.steps[k]
        if step.norm is not None and k > self.first:  # statistics of the source were gathered when it was computed
            for rows in self._cuts(self.steps[k - 1]):
                step.norm.gather(self._boundary(k, *rows))
        if isinstance(step, ResidualStep) and not (self.keep_hidden and k == self.end - 1):
            for rows in self._cuts(step.first):
                step.hidden_norm.gather(step.first.forward(self._boundary(k, *step.first.needs(*rows)), *rows))
        if isinstance(step, AttentionStep):
            for rows in self._cuts(step):
                step.remember(self._boundary(k, *rows))

    def _finish_through_hidden(self, step: ResidualStep) -> None:
        """Computes a residual block at the segment's end, by way of its hidden activation and shortcut, which are kept.

        The source is freed while these two grow, and they are freed while the end grows.
        """
        hidden, shortcut = _new_strips(self.plan, self.memory), _new_strips(self.plan, self.memory)
        for rows in self._cuts(step):
            self._split(step, rows, hidden, shortcut)
            self._release(self.end - 1, step.first.needs(rows[1], rows[1] + 1)[0])
        self.source.release(self.steps[self.first].below.rows)
        for rows in self._cuts(step):
            self._make_room(step.second, *rows)
            self._append(step.join(hidden.read(*step.second.needs(*rows)), shortcut.read(*rows), *rows))
            hidden.release(step.second.needs(rows[1], rows[1] + 1)[0])
            shortcut.release(rows[1])
        hidden.release(step.above.rows)

    def _split(self, step: ResidualStep, rows: tuple[int, int], hidden: Strips, shortcut: Strips) -> None:
        needed = step.first.needs(*rows)
        x = self._boundary(self.end - 1, *needed)
        self._make_room(step, *rows)
        activation = step.first.forward(x, *rows)
        step.hidden_norm.gather(activation)
        hidden.append(activation)
        if self.end - 1 == self.first:
            inner = self.source.read(*rows)  # a strip of the source as it is, which the shortcut then keeps alive
        else:
            inner = x.narrow(step.axis, rows[0] - needed[0], rows[1] - rows[0]).clone()
        shortcut.append(step.shortcut(inner))

    def _append(self, strip: Tensor) -> None:
        if self.end < len(self.steps) and (norm := self.steps[self.end].norm) is not None:
            norm.gather(strip)
        self.target.append(strip)

    def _boundary(self, k: int, first: int, end: int) -> Tensor:
        """Rows of boundary k, computed from the source."""
        if k == self.first:
            return self.source.read(first, end)
        step = self.steps[k - 1]
        below = self._boundary(k - 1, *step.needs(first, end))
        self._make_room(step, first, end)
        return step.forward(below, first, end)

    def _make_room(self, step: ChainStep, first: int, end: int) -> None:
        self.memory.room.make(step.working(end - first) * self.plan.element_size)

    def _release(self, k: int, row: int) -> None:
        """Frees the source's rows that the rows of boundary k from `row` on do not need."""
        for step in reversed(self.steps[self.first : k]):
            row = step.needs(row, row + 1)[0]
        self.source.release(row)

    def _cuts(self, step: ChainStep) -> Iterator[tuple[int, int]]:
        return cuts(step.above.rows, self.plan.strips)
