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
from ldm_vae.piecewise.steps import AttentionStep, ChainStep, ResidualStep
from ldm_vae.piecewise.strips import Strips, Whole, cuts


@exact_float32()
@torch.no_grad()
def decode_pieces(model: Network, z: Tensor, *, max_memory: int | None = None, held: int = 0) -> tuple[Tensor, Plan]:
    """Evaluates `model.decode` in pieces, one picture after the other, without gradients.

    z: (B, c, h, w), raw.
    max_memory: bound in bytes on what is taken beside weights and input; the result counts.
    None: nothing is computed twice, and pictures too small to be cut (plan.strips is 1) run as one batch.
    held: bytes of the bound that the caller needs for itself.
    Returns (B, C, h*f, w*f), and the plan that was followed for each picture.
    Raises UserError for a bound that is too low, and names the lowest that is possible.
    """
    batch, _, height, width = z.shape
    factor = model.config.factor
    shape = (batch, model.config.out_channels, height * factor, width * factor)
    beside = held + math.prod(shape) * z.element_size()
    plan = plan_decode(model, height, width, max_memory=max_memory, beside=beside)
    if plan.strips == 1 and max_memory is None:
        return model.decode(z), plan
    room = Room(None if max_memory is None else max_memory - held)
    output = z.new_empty(shape)
    for i in range(batch):
        steps = chains_of(model).decoder_steps(model, height, width)
        run_plan(plan, steps, z[i : i + 1], output[i : i + 1], model.likelihood.mean, room)
    return output, plan


@exact_float32()
@torch.no_grad()
def encode_pieces(
    model: Network, images: Tensor, *, max_memory: int | None = None, held: int = 0
) -> tuple[Tensor, Plan]:
    """Evaluates `model.encode` in pieces; otherwise like `decode_pieces`.

    images: (B, C, H, W) in [-1, 1].
    Returns (B, width * c, H/f, W/f), rounded down, the bottleneck's input; and the plan.
    """
    batch, _, height, width = images.shape
    factor = model.config.factor
    shape = (batch, model.bottleneck.width * model.config.latent_channels, height // factor, width // factor)
    beside = held + math.prod(shape) * images.element_size()
    plan = plan_encode(model, height, width, max_memory=max_memory, beside=beside)
    if plan.strips == 1 and max_memory is None:
        return model.encode(images), plan
    room = Room(None if max_memory is None else max_memory - held)
    output = images.new_empty(shape)
    for i in range(batch):
        steps = chains_of(model).encoder_steps(model, height, width)
        run_plan(plan, steps, images[i : i + 1], output[i : i + 1], room=room)
    return output, plan


def run_plan(
    plan: Plan,
    steps: Sequence[ChainStep],
    picture: Tensor,
    output: Tensor,
    finish: Callable[[Tensor], Tensor] | None = None,
    room: Room | None = None,
) -> None:
    """Runs freshly made steps on one picture (1, C, H, W) and writes the result to `output`.

    finish: what is done to each strip of the result before it is written, such as reading a picture from the parameters
    of its pixels; None writes it as it is.
    room: where memory is to be handed back to the system in time; None for no bound.
    """
    room = room or Room(None)
    source: Strips | Whole = Whole(plan.axis, picture)
    for segment in plan.segments:
        target = Whole(plan.axis, output, finish) if segment.end == len(steps) else _new_strips(plan)
        _SegmentRun(plan, steps, segment, source, target, room).run()
        source = target


def _new_strips(plan: Plan) -> Strips:
    return Strips(plan.axis, torch.device("cpu") if plan.spill else None)


class _SegmentRun:
    """Evaluates one segment for one picture. No variable keeps a strip after its use: else it would hold its memory."""

    def __init__(
        self,
        plan: Plan,
        steps: Sequence[ChainStep],
        segment: Segment,
        source: Strips | Whole,
        target: Strips | Whole,
        room: Room,
    ) -> None:
        self.plan, self.steps, self.source, self.target, self.room = plan, steps, source, target, room
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
        hidden, shortcut = _new_strips(self.plan), _new_strips(self.plan)
        for rows in self._cuts(step):
            self._split(step, rows, hidden, shortcut)
            self._release(self.end - 1, step.first.needs(rows[1], rows[1] + 1)[0])
        self.source.release(self.steps[self.first].below.rows)
        for rows in self._cuts(step):
            self._make_room(step.second, *rows)
            self._append(step.join(hidden.read(*step.second.needs(*rows)), shortcut.read(*rows), *rows))
            hidden.release(step.second.needs(rows[1], rows[1] + 1)[0])
            shortcut.release(rows[1])

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
        self.room.make(step.working(end - first) * self.plan.element_size)

    def _release(self, k: int, row: int) -> None:
        """Frees the source's rows that the rows of boundary k from `row` on do not need."""
        for step in reversed(self.steps[self.first : k]):
            row = step.needs(row, row + 1)[0]
        self.source.release(row)

    def _cuts(self, step: ChainStep) -> Iterator[tuple[int, int]]:
        return cuts(step.above.rows, self.plan.strips)
