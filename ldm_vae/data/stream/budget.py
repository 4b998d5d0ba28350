"""Stops a run that meets too many broken samples: in number over all its data, or as a share of one source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ldm_vae.data.shards.index import Index
from ldm_vae.data.stream.worker import Fault
from ldm_vae.errors import UserError

LISTED = 10  # broken samples named in the message that stops a run


@dataclass(frozen=True)
class Budget:
    """How many different broken samples a run takes.

    index: its data.
    count: how many at most.
    share: the share of the images of each source, 0 to 1, that may be broken; one always may.
    """

    index: Index
    count: int
    share: float

    @cached_property
    def _source(self) -> dict[str, int]:
        """URL of a shard -> number of its source."""
        parts = enumerate(self.index.parts)
        return {shard.url: n for n, part in parts for shard in self.index.shards[part.first : part.stop]}

    def check(self, broken: Collection[Fault]) -> None:
        """Raises UserError if there are more."""
        if len(broken) > self.count:
            what = f"{len(broken)} broken samples, {self.count} are allowed: {listed(broken)}"
            raise UserError(what, "mend or remove them, or raise data.broken_budget")
        for source, found in Counter(self._source[fault.url] for fault in broken).items():
            part = self.index.parts[source]
            samples = int(self.index.counts[part.first : part.stop].sum())
            if found > max(1, int(self.share * samples)):
                those = [fault for fault in broken if self._source[fault.url] == source]
                what = f"{found} of {samples} images are broken, a share of {self.share:g} is allowed: {listed(those)}"
                raise UserError(what, "mend or remove them, or raise data.broken_share")


def listed(broken: Collection[Fault]) -> str:
    """The broken samples with their reasons, at most LISTED of them."""
    listed = [f"{fault.url} {fault.key} ({fault.reason})" for fault in broken]
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return f"{', '.join(listed[:LISTED])}{more}"
