"""The bytes of samples: from local shards one at a time, from remote ones a window of a lane at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ldm_vae.data.images import EXTENSIONS
from ldm_vae.data.index import Index
from ldm_vae.data.order import SampleRef
from ldm_vae.data.source import Missing, Source, is_remote
from ldm_vae.data.tar import BLOCK, verify_header

LABEL = "cls"
GAP = 2**16  # bytes of other members read over rather than asking again
LANE_BYTES = 2**23  # bytes fetched ahead in a lane at most: 512 MiB over all lanes, however large the images
MAX_SAMPLE = 2**30  # bytes of one sample; more is taken for a bomb

Fields = dict[str, bytes]  # field -> content
Place = tuple[SampleRef, str, int, int]  # sample, field, offset and size of the content in its shard


class BrokenSample(Exception):
    """A sample that cannot be had.   reason: one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Fetcher:
    """Reads the picture of a sample, and its label where all samples have one. One per process."""

    def __init__(self, index: Index) -> None:
        self.source = Source()
        self._index = index
        self._labelled = index.fields.get(LABEL) == index.samples
        self._ahead: dict[SampleRef, Fields | BrokenSample] = {}  # read, and not yet asked for

    def get(self, ref: SampleRef, coming: Callable[[], Iterable[SampleRef]]) -> Fields:
        """The fields of a sample. Raises BrokenSample; Unreachable where the source is down.

        coming: the samples of this window that this reader will ask for from `ref` on; called for remote shards.
        """
        if ref not in self._ahead:
            if is_remote(self._index.shards[ref.shard].url):
                self._read_ahead(ref, coming())
            else:
                self._ahead |= self._read([ref])
        found = self._ahead.pop(ref)
        if isinstance(found, BrokenSample):
            raise found
        return found

    def _read_ahead(self, ref: SampleRef, coming: Iterable[SampleRef]) -> None:
        chosen, total = [ref], 0
        for later in coming:
            total += sum(size for *_, size in self._places(later))
            if total > LANE_BYTES:
                break
            if later != ref and later not in self._ahead:
                chosen.append(later)
        self._ahead |= self._read(chosen)

    def _read(self, refs: Sequence[SampleRef]) -> dict[SampleRef, Fields | BrokenSample]:
        found: dict[SampleRef, Fields | BrokenSample] = {ref: {} for ref in refs}
        places = []
        for ref in refs:
            mine = self._places(ref)
            if sum(size for *_, size in mine) > MAX_SAMPLE:
                found[ref] = BrokenSample(f"more than {MAX_SAMPLE} bytes")
            elif all(field == LABEL for _, field, _, _ in mine):
                found[ref] = BrokenSample("no picture among its members")
            else:
                places += mine
        for run in _runs(sorted(places, key=lambda place: (place[0].shard, place[2]))):
            self._read_run(run, found)
        return found

    def _read_run(self, run: list[Place], found: dict[SampleRef, Fields | BrokenSample]) -> None:
        """One read of neighbouring members, each with its header, which is held against the index."""
        shard = self._index.shards[run[0][0].shard]
        start, end = run[0][2] - BLOCK, run[-1][2] + run[-1][3]
        try:
            data = self.source.read(shard.url, start, end - start)
        except Missing as error:
            found.update({ref: BrokenSample(str(error)) for ref, *_ in run})
            return
        for ref, field, offset, size in run:
            at = offset - start
            fields, name = found[ref], f"{shard.key(ref.ordinal)}.{field}"
            problem = verify_header(data[at - BLOCK : at], name, size)
            if problem is not None:
                found[ref] = BrokenSample(problem)
            elif not isinstance(fields, BrokenSample):
                fields[field] = data[at : at + size]

    def _places(self, ref: SampleRef) -> list[Place]:
        members = self._index.shards[ref.shard].fields(ref.ordinal)
        picture = next((field for field in EXTENSIONS if field in members), None)
        wanted = ([] if picture is None else [picture]) + ([LABEL] if self._labelled else [])
        return [(ref, field, *members[field]) for field in wanted]


def _runs(places: list[Place]) -> list[list[Place]]:
    """Sorted places -> groups that one read each serves."""
    runs: list[list[Place]] = []
    for place in places:
        if runs:
            last = runs[-1][-1]
            if last[0].shard == place[0].shard and place[2] - BLOCK - (last[2] + last[3]) <= GAP:
                runs[-1].append(place)
                continue
        runs.append([place])
    return runs
