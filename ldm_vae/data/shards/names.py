"""Cuts the names of the members of a shard into the key of the sample and the field.

A name is cut at its last dot, so that keys may hold dots: `b.v1.0.jpg` is field `jpg` of `b.v1.0`. But a field holds a
dot, as webdataset's compound fields do (`seg.png` of `0001`), if in at least half of the names that end in it, the name
up to its first dot has another member (`0001.jpg`, `0001.cls`) and the rest has no label of its own (`0001.seg.cls`). A
field that stands in one name only must be beside a picture, and begin with a number only if others do, too: `a.2.jpg`
and `a.jpg` are two pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container

from ldm_vae.data.images.pixels import EXTENSIONS

LABEL = "cls"  # the field that holds a class


def split_name(name: str, compound: Container[str] = ()) -> tuple[str, str]:
    """Member name -> (key, field): `a/b.v1.0.JPG` -> (`a/b.v1.0`, `jpg`); without a dot the field is empty.

    compound: the fields of this shard that hold dots.
    """
    folder, slash, base = name.rpartition("/")
    start = base.find(".", 1)
    if start < 0:
        return name, ""
    field = base[start + 1 :].lower()
    if field not in compound:
        start = base.rfind(".")
        field = base[start + 1 :].lower()
    return folder + slash + base[:start], field


def compound_fields(names: Collection[str]) -> set[str]:
    """The fields of one shard that hold dots, by the rule above.

    names: those of all members of the shard.
    """
    dotted: list[tuple[str, str, str]] = []  # (name up to the first dot, what follows, key up to the last dot)
    beside: dict[str, set[str]] = {}  # name up to the first dot -> its fields without dots
    labelled: set[str] = set()  # keys up to the last dot that have a label
    for name in names:
        key, field = split_name(name)
        if field == LABEL:
            labelled.add(key)
        folder, slash, base = key.rpartition("/")
        stem, dot, inner = base.partition(".") if "." in base[1:] else (base, "", "")
        if dot and stem:
            dotted.append((folder + slash + stem, f"{inner}.{field}".lower(), key))
        else:
            beside.setdefault(key, set()).add(field)
    totals = Counter(field for _, field, _ in dotted)
    parts = Counter(field for stem, field, key in dotted if stem in beside and key not in labelled)
    found = {field for field, count in parts.items() if 2 * count >= totals[field]}
    alone = {field: stem for stem, field, _ in dotted if totals[field] == 1 and field in found}
    numbered = any(field[0].isdigit() for field in found if field not in alone)
    return {
        field
        for field in found
        if field not in alone
        or (not beside[alone[field]].isdisjoint(EXTENSIONS) and (numbered or not field[0].isdigit()))
    }
