"""Which boundaries of a chain are kept and which are computed again, so that a bound on memory holds.

A norm needs statistics of its whole input before any of its output can be computed: this is a barrier. A segment is a
sequence of steps between two boundaries that are kept (the input and the output always are). Every barrier inside a
segment costs one pass over the picture, which computes everything from the segment's start again. The last pass
computes the boundary at the segment's end, while the one at its start is freed strip by strip. Long segments take less
memory and more work.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.networks.network import Network
from ldm_vae.piecewise.chains.chain import chains_of
from ldm_vae.piecewise.steps import AttentionStep, ChainStep, Extent, ResidualStep

# Bytes of a strip of the largest boundary, by default. At 1024 x 1024, strips of 4 MiB take 1.25 times the work of the
# full pass, those of 16 MiB 1.1 times. From 32 MiB on malloc maps every block anew, which costs more.
STRIP_BYTES = 16 * 2**20
STRIPS, SMALL_STRIP = 16, 2**20  # smaller boundaries are cut into 16 strips of at least 1 MiB
MOST_STRIPS = 256  # highest number of strips, by default
# Numbers in a strip of the largest boundary on any other device, by default: 256 MiB in float32. There an allocator
# keeps what is freed, and the host starts each operation, which takes longer than a small strip does.
DEVICE_STRIP = 2**26
# Operations that could be done there while a step's kernels are started, some 10 of 5 microseconds.
DEVICE_CALL = 1.0e9
SHARING = ("cpu", "mps")  # devices whose memory is the host's, so that nothing is gained by keeping a boundary there
MOST_WORK = 32.0  # highest ratio of a plan's work to the work of computing nothing twice
BOOKKEEPING = 2**16  # bytes for norm statistics and the like


class BoundTooLow(UserError):
    """No plan keeps to a bound on memory.

    least: bytes that a plan takes at least.
    """

    def __init__(self, what: str, remedy: str, least: int) -> None:
        super().__init__(what, remedy)
        self.least = least


@dataclass(frozen=True)
class Segment:
    """The steps between two boundaries that are kept: steps[first:end].

    first: the first step.
    end: the step after the last one.
    keep_hidden: the segment ends with a residual block, whose hidden activation and shortcut are kept as well.
    """

    first: int
    end: int
    keep_hidden: bool


@dataclass(frozen=True)
class Plan:
    """How one picture is evaluated.

    axis: 2 cuts rows of pixels, 3 columns.
    strips: number of strips that every boundary is cut into.
    segments: the segments, from input to output.
    working_bytes: upper bound on memory beyond weights, input and output.
    work: operations, relative to computing nothing twice.
    spill: whether the kept boundaries lie in the host's memory, while a GPU computes.
    element_size: bytes of a value.
    """

    axis: int
    strips: int
    segments: tuple[Segment, ...]
    working_bytes: int
    work: float
    spill: bool
    element_size: int


def plan_decode(model: Network, height: int, width: int, *, max_memory: int | None = None, beside: int = 0) -> Plan:
    """The plan for `model.decode` of latents of height x width.

    max_memory: bound in bytes on `beside` and the plan's working memory. None: nothing is computed twice.
    beside: bytes that are taken whatever the plan is, such as those of the result.
    Raises BoundTooLow for a bound that is too low, and names the lowest that is possible.
    """
    what, steps = f"decoding {height} x {width} latents", chains_of(model).decoder_steps(model, height, width)
    return make_plan(steps, next(model.parameters()), what, max_memory, beside)


def plan_encode(model: Network, height: int, width: int, *, max_memory: int | None = None, beside: int = 0) -> Plan:
    """The plan for `model.encode` of images of height x width; otherwise like `plan_decode`."""
    what, steps = f"encoding {height} x {width} pixels", chains_of(model).encoder_steps(model, height, width)
    return make_plan(steps, next(model.parameters()), what, max_memory, beside)


def make_plan(steps: Sequence[ChainStep], weight: Tensor, what: str, max_memory: int | None, beside: int = 0) -> Plan:
    """The plan of least work within a bound on memory.

    steps: the steps of the chain.
    weight: any weight of the network; its type and device are used.
    what: what is to be done, for the error.
    max_memory, beside: as in `plan_decode`.
    """
    device, size = weight.device.type, weight.element_size()
    most = max(step.above.rows for step in steps)
    costs = _Costs(steps, size, device, min(_default_strips(steps, size, device), MOST_STRIPS, most))
    once = route = costs.once()
    if max_memory is not None and beside + once.bytes > max_memory:
        # Computing again comes first. To spill takes 24 GiB over the bus for a megapixel, 1 s at 25 GB/s; a whole pass
        # has 1e13 operations, 0.1 s at 100 TFLOP/s.
        ways = (False,) if device in SHARING else (False, True)
        counts = [min(2**power, most) for power in range(most.bit_length())]
        tried = [[_Costs(steps, size, device, count, spill) for count in counts] for spill in ways]
        found = next(filter(None, (_cheapest(way, max_memory - beside, once, device) for way in tried)), None)
        if found is None:
            least = beside + int(min(costs.least(_reach(costs, once, device)) for way in tried for costs in way))
            raise BoundTooLow(f"max_memory of {max_memory:,} bytes", f"{what} takes at least {least:,}", least)
        route, costs = found
    return Plan(
        axis=steps[0].axis,
        strips=costs.strips,
        segments=route.segments,
        working_bytes=route.bytes,
        work=route.operations / once.operations,
        spill=costs.spill,
        element_size=size,
    )


def _cheapest(tried: Sequence[_Costs], max_memory: float, once: _Route, device: str) -> tuple[_Route, _Costs] | None:
    """The route of least work within a bound on memory, with the costs it has; None where there is none."""
    routes = [(costs.cheapest(max_memory, _reach(costs, once, device)), costs) for costs in tried]
    found = [(route, costs) for route, costs in routes if route is not None]
    return min(found, key=lambda pair: pair[0].operations) if found else None


def _reach(costs: _Costs, once: _Route, device: str) -> float:
    """The most operations of a route. Where starting a kernel is much of the work, many strips do not count as more."""
    return MOST_WORK * (once if device == "cpu" else costs.once()).operations


def _default_strips(steps: Sequence[ChainStep], element_size: int, device: str) -> int:
    """Into how many strips each boundary is cut where memory is no concern."""
    largest = max(step.above.values() for step in steps)
    if device != "cpu":
        return math.ceil(largest / DEVICE_STRIP)
    strip = min(STRIP_BYTES, max(largest * element_size / STRIPS, SMALL_STRIP))
    return math.ceil(largest * element_size / strip)


@dataclass(frozen=True)
class _Route:
    segments: tuple[Segment, ...]
    operations: float
    bytes: int


@dataclass(frozen=True)
class _Pass:
    """The cost of one pass.

    operations: operations over the whole picture.
    bytes: memory that one strip takes.
    source_rows: rows of the source that one strip needs.
    """

    operations: float
    bytes: int
    source_rows: int


class _Costs:
    """Operations and bytes of every possible segment, for one number of strips."""

    def __init__(
        self, steps: Sequence[ChainStep], element_size: int, device: str, strips: int, spill: bool = False
    ) -> None:
        self.steps, self.element_size, self.strips, self.spill = steps, element_size, strips, spill
        self.call = 0.0 if device == "cpu" else DEVICE_CALL
        self.boundaries = [steps[0].below, *(step.above for step in steps)]
        # Strips that gathering statistics takes: half types are copied to float32 first, and on a CPU the kernel writes
        # a strip besides. A strip on its way to the host is copied, too.
        copies, written = (0 if element_size >= 4 else 2), (2 if element_size < 4 else 1) if device == "cpu" else 0
        self.gathering = max(1 + copies + written, 2 if spill else 1)
        self.segments = [segment for first in range(len(steps)) for segment in self._from(first)]
        self.segments.sort(key=lambda entry: entry[0].end)

    def cheapest(self, max_memory: float = math.inf, most_work: float = math.inf) -> _Route | None:
        """The route of least work whose segments keep to the bounds; among equals, the one of least memory."""
        best = {0: _Route((), 0.0, 0)}
        for segment, operations, size in self.segments:
            if segment.first in best and size <= max_memory:
                start = best[segment.first]
                new = _Route((*start.segments, segment), start.operations + operations, max(start.bytes, size))
                old = best.setdefault(segment.end, new)
                if (new.operations, new.bytes) < (old.operations, old.bytes):
                    best[segment.end] = new
        found = best.get(len(self.steps))
        return found if found is not None and found.operations <= most_work else None

    def once(self) -> _Route:
        """The route that computes nothing twice."""
        route = self.cheapest()
        assert route is not None  # no bound, and the segment of each step by itself is always there
        return route

    def least(self, most_work: float) -> float:
        """The memory in bytes of the route that takes the least."""
        sizes = sorted({size for _, _, size in self.segments})
        i = bisect_left(sizes, True, key=lambda size: self.cheapest(size, most_work) is not None)
        return sizes[i] if i < len(sizes) else math.inf

    def _from(self, first: int) -> Iterator[tuple[Segment, float, int]]:
        """Every segment that starts at this boundary."""
        start = self._kept(first)
        operations, size = 0.0, 0  # what the passes for the barriers take so far
        for k, step in enumerate(self.steps[first:], first):
            passes = [self._pass(first, k)] if k > first and step.norm is not None else []
            if isinstance(step, ResidualStep):
                for done in passes:
                    operations, size = operations + done.operations, max(size, start + done.bytes)
                yield self._keeping_hidden(first, k, operations, size)
                passes = [self._pass(first, k, hidden=True)]
            known = 0  # bytes of keys and values
            if isinstance(step, AttentionStep):
                known = 2 * step.below.values() * self.element_size
                keys = self._pass(first, k)
                working = step.working(self._rows(step.below)) * self.element_size
                passes.append(replace(keys, bytes=known + keys.bytes + working))
            for done in passes:
                operations, size = operations + done.operations, max(size, start + done.bytes)
            last = self._pass(first, k + 1)
            traded = (
                known + last.bytes + self._traded(self.boundaries[first], start, last.source_rows, self._kept(k + 1))
            )
            yield Segment(first, k + 1, False), operations + last.operations, max(size, traded) + BOOKKEEPING
            if isinstance(step, AttentionStep):  # never computed twice
                return

    def _keeping_hidden(self, first: int, k: int, operations: float, size: int) -> tuple[Segment, float, int]:
        """The segment that ends with the residual block steps[k] and keeps its hidden activation.

        operations, size: operations and bytes of the passes for the barriers before that activation.
        """
        step = self.steps[k]
        assert isinstance(step, ResidualStep)
        rows, extent = self._rows(step.above), step.above
        kept = 0 if self.spill else 2 * extent.values() * self.element_size
        hidden = self._pass(first, k, hidden=True)
        shortcut = 2 * (step.below.values(rows) + extent.values(rows))  # its input, its result, the library's copies
        hidden_bytes = hidden.bytes + shortcut * self.element_size
        hidden_bytes += self._traded(self.boundaries[first], self._kept(first), hidden.source_rows, kept)
        joined = max(step.second.working(rows) + extent.values(rows), self.gathering * extent.values(rows))
        both = replace(extent, channels=2 * extent.channels)
        joined_bytes = joined * self.element_size + self._traded(both, kept, rows + 2, self._kept(k + 1))
        operations += hidden.operations + (step.second.operations(rows) + self.call) * self._count(extent)
        return Segment(first, k + 1, True), operations, max(size, hidden_bytes, joined_bytes) + BOOKKEEPING

    def _pass(self, first: int, k: int, hidden: bool = False) -> _Pass:
        """The cost of computing boundary k, or the hidden activation of steps[k], from boundary `first`."""
        extent = self.boundaries[k]
        rows = self._rows(extent)
        operations, values = 0.0, self.gathering * extent.values(rows)
        if hidden:
            step = self.steps[k]
            assert isinstance(step, ResidualStep)
            operations, values = (
                step.first.operations(rows) + self.call,
                max(step.first.working(rows), self.gathering * step.first.above.values(rows)),
            )
            rows = step.first.rows_below(rows)
        for step in reversed(self.steps[first:k]):
            operations, values = operations + step.operations(rows) + self.call, max(values, step.working(rows))
            rows = min(step.rows_below(rows), step.below.rows)
        if self.spill:  # what is read comes to the device first
            values += self.boundaries[first].values(rows)
        return _Pass(operations * self._count(extent), values * self.element_size, rows)

    def _traded(self, extent: Extent, source: int, rows: int, target: int) -> int:
        """Upper bound on the bytes of two boundaries, while one grows and the other one is freed.

        extent: size of the boundary that is freed.
        source: its bytes.
        rows: rows of it that one strip of the other one needs.
        target: bytes of the boundary that grows.
        """
        if source == 0:
            return target
        late = rows + self._rows(extent) + 1  # rows freed later than in step with the target's growth
        return min(source + target, max(source, target) + extent.values(late) * self.element_size)

    def _kept(self, k: int) -> int:
        """Bytes of boundary k when it is kept; input and output do not count."""
        inner = 0 < k < len(self.steps) and not self.spill
        return self.boundaries[k].values() * self.element_size if inner else 0

    def _rows(self, extent: Extent) -> int:
        return math.ceil(extent.rows / self.strips)

    def _count(self, extent: Extent) -> int:
        return math.ceil(extent.rows / self._rows(extent))
