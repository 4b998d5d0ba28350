"""The class and the text of a stored sample, as LatentDataset gives them, and what stands for one that is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, NonNegativeInt

from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.shards.shard import BrokenSample, parse_label

TEXT = "txt"
FIELDS = (LABEL, TEXT)
MISSING: Mapping[str, int | str] = {LABEL: -1, TEXT: ""}  # no class is negative


def _of_all(counts: dict[str, int]) -> dict[str, int]:
    if counts.keys() != set(FIELDS):
        raise ValueError(f"it counts {', '.join(FIELDS)}")
    return counts


FieldCounts = Annotated[dict[str, NonNegativeInt], AfterValidator(_of_all)]  # samples that have each of FIELDS


def count_fields(fields: Mapping[str, bytes], counts: Counter[str]) -> None:
    """Adds 1 for each of FIELDS that a sample has. A class that is no integer counts as none."""
    counts.update(name for name in FIELDS if name in fields and (name == TEXT or _label(fields[name]) is not None))


def total_of(counts: Iterable[Mapping[str, int] | None]) -> dict[str, int] | None:
    """The sum of the counts of all shards; None where one shard was not counted, as in earlier versions."""
    total = dict.fromkeys(FIELDS, 0)
    for one in counts:
        if one is None:
            return None
        for name in FIELDS:
            total[name] += one[name]
    return total


def read_field(name: str, data: bytes) -> tuple[int | str, str]:
    """The value of a field, and what is wrong with it, or "".

    A text becomes str; bytes that are no UTF-8 become U+FFFD each. A class that is no integer becomes MISSING.
    """
    if name == LABEL:
        label = _label(data)
        return (MISSING[name], f"is no integer, and becomes {MISSING[name]}") if label is None else (label, "")
    text = data.decode("utf-8", "replace")
    broken = "\ufffd" in text and data != text.encode()
    return text, "is no UTF-8, and gets U+FFFD where it is none" if broken else ""


def _label(data: bytes) -> int | None:
    try:
        return parse_label(data)
    except BrokenSample:
        return None
