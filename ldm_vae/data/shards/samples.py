"""Reads every sample of a shard with all its fields, in order, for `ldm-vae encode`, which carries the fields along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.shard import Fields, ShardIndex
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.data.shards.tar import HEADER_BYTES, verify_header
from ldm_vae.data.shards.urls import without_secrets
from ldm_vae.errors import UserError

READ_AHEAD = 2**23  # bytes of a tar read at once


def read_samples(shard: ShardIndex) -> Iterator[tuple[str, Fields | str]]:
    """Gives (key, fields) for each sample, or (key, reason) if the shard is not what its index says.

    Raises UserError if the shard cannot be read.
    """
    with closing(RangeReader()) as reader:
        try:
            yield from _read_folder(shard, reader) if shard.files is not None else _read_tar(shard, reader)
        except Missing as error:
            what = f"shard {without_secrets(shard.url)} cannot be read ({error})"
            raise UserError(what, "mend it, then run this again: what is finished is kept") from error


def _read_folder(shard: ShardIndex, reader: RangeReader) -> Iterator[tuple[str, Fields]]:
    for ordinal in range(shard.samples):
        places = {field: shard.place(ordinal, field) for field in shard.fields(ordinal)}
        yield shard.key(ordinal), {field: reader.read(*place) for field, place in places.items()}


def _read_tar(shard: ShardIndex, reader: RangeReader) -> Iterator[tuple[str, Fields | str]]:
    for first, end in _runs(shard):
        start = _span(shard, first)[0]
        data = reader.read(shard.url, start, _span(shard, end - 1)[1] - start)
        for ordinal in range(first, end):
            key, fields, problem = shard.key(ordinal), {}, None
            for field, (offset, size) in sorted(shard.fields(ordinal).items(), key=lambda item: item[1]):
                at = offset - start

                def before(count: int, offset: int = offset, at: int = at, data: bytes = data) -> bytes:
                    count = min(count, offset)
                    return data[at - count : at] if count <= at else reader.read(shard.url, offset - count, count)

                problem = problem or verify_header(before, key, field, size)
                fields[field] = data[at : at + size]
            yield key, problem or fields


def _runs(shard: ShardIndex) -> Iterator[tuple[int, int]]:
    """Groups samples so that one read serves each group: number of its first sample, and number after its last."""
    first = 0
    while first < shard.samples:
        start, end = _span(shard, first)[0], first + 1
        while end < shard.samples and _span(shard, end)[1] - start <= READ_AHEAD:
            end += 1
        yield first, end
        first = end


def _span(shard: ShardIndex, ordinal: int) -> tuple[int, int]:
    """(start, end) of a sample in the tar, in bytes, with what stands before its first member."""
    places = shard.fields(ordinal).values()
    first = min(offset for offset, _ in places)
    return first - min(HEADER_BYTES, first), max(offset + size for offset, size in places)
