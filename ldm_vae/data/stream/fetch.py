"""Reads the bytes of samples: one sample at a time from local shards, a window of a lane at a time from remote ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.shard import MAX_SAMPLE, BrokenSample, Fields
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.data.shards.tar import HEADER_BYTES, verify_header
from ldm_vae.data.shards.urls import is_remote
from ldm_vae.data.stream.order import SampleRef

LARGEST_GAP = 2**16  # bytes; members that are no further apart are read at once, with what lies between them
LANE_BYTES = 2**23  # bytes fetched ahead in a lane at most: 512 MiB over all lanes, however large the images


class Place(NamedTuple):
    """Where the content of one field of a sample lies.

    ref: the sample.
    field: name of the field.
    url: path or URL of the file that holds it.
    offset: first byte of the content.
    size: bytes of the content.
    head: bytes before the content that are read with it for the tar header; 0 for a file that is no tar.
    """

    ref: SampleRef
    field: str
    url: str
    offset: int
    size: int
    head: int

    @property
    def begin(self) -> int:
        return self.offset - self.head

    @property
    def end(self) -> int:
        return self.offset + self.size


class Fetcher:
    """Reads the picture of a sample, and its label if all samples have one. Each process has its own."""

    def __init__(self, index: Index) -> None:
        self.reader = RangeReader()
        self._index = index
        self._labelled = index.fields.get(LABEL) == index.samples
        self._ahead: dict[SampleRef, Fields | BrokenSample] = {}  # read ahead, not yet asked for

    def get(self, ref: SampleRef, coming: Callable[[], Iterable[SampleRef]]) -> Fields:
        """The fields of a sample. Raises BrokenSample, or UserError (Unreachable, Forbidden) if a disk or server fails.

        coming: gives the samples of this window that will be asked for from `ref` on. It is called for remote shards
        only, which are read ahead.
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
            total += sum(place.size for place in self._places(later))
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
            if sum(place.size for place in mine) > MAX_SAMPLE:
                found[ref] = BrokenSample(f"more than {MAX_SAMPLE} bytes")
            elif all(place.field == LABEL for place in mine):
                found[ref] = BrokenSample("no picture among its members")
            else:
                places += mine
        for run in _runs(sorted(places, key=lambda place: (place.url, place.offset))):
            self._read_run(run, found)
        return found

    def _read_run(self, run: list[Place], found: dict[SampleRef, Fields | BrokenSample]) -> None:
        """Reads neighbouring members in one piece, and compares the header before each with the index."""
        begin = run[0].begin
        try:
            data = self.reader.read(run[0].url, begin, run[-1].end - begin)
        except Missing as error:
            found.update({place.ref: BrokenSample(str(error)) for place in run})
            return
        for place in run:
            fields = found[place.ref]
            problem = self._changed(place, data, place.offset - begin)
            if problem is not None:
                found[place.ref] = BrokenSample(problem)
            elif not isinstance(fields, BrokenSample):
                fields[place.field] = data[place.offset - begin : place.end - begin]

    def _changed(self, place: Place, data: bytes, at: int) -> str | None:
        """Why the bytes are not those that the index describes; None if they are.

        data: a piece of the file.
        at: where the content starts in it.
        """

        def before(count: int) -> bytes:
            count = min(count, place.offset)
            return data[at - count : at] if count <= at else self.reader.read(place.url, place.offset - count, count)

        try:
            if place.head:
                key = self._index.shards[place.ref.shard].key(place.ref.ordinal)
                return verify_header(before, key, place.field, place.size)
            size = self.reader.size(place.url)
        except Missing as error:  # removed while it was still open here
            return str(error)
        return None if size == place.size else f"the file had {place.size} bytes at the start, it has {size}"

    def _places(self, ref: SampleRef) -> list[Place]:
        shard = self._index.shards[ref.shard]
        picture = shard.picture(ref.ordinal)
        wanted = ([] if picture is None else [picture]) + ([LABEL] if self._labelled else [])
        places = [(field, *shard.place(ref.ordinal, field)) for field in wanted]
        tar = shard.files is None
        return [Place(ref, *place, head=min(HEADER_BYTES, place[2]) if tar else 0) for place in places]


def _runs(places: list[Place]) -> list[list[Place]]:
    """Groups sorted places, so that one read serves each group."""
    runs: list[list[Place]] = []
    for place in places:
        last = runs[-1][-1] if runs else None
        if last is not None and last.url == place.url and place.begin - last.end <= LARGEST_GAP:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
