"""Version 1 of latents.json and its records, which 0.1.0 wrote: read as the present one, and finished as it was begun.

latents.json listed the sizes of all images, and the reasons why samples were left out; records had no digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECORD_LACKS = {"version", "source", "tar", "arithmetic", "fields"}
JOB_LACKS = ("source", "encoder")


def upgrade_latents_file(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a latents.json of version 1 -> the fields of the present one, with the version 1 and the sizes."""
    upgraded = {name: value for name, value in content.items() if name not in ("dtype", "quarantined")}
    left_out, shards = content.get("quarantined"), content.get("shards")
    if isinstance(shards, Mapping):  # anything else is refused where the fields are checked
        left_out = left_out if isinstance(left_out, Mapping) else {}
        lost = {name: names if isinstance(names := left_out.get(name), Mapping) else () for name in shards}
        upgraded["shards"] = {
            name: {"samples": samples, "left_out": len(lost[name]), "record": None} for name, samples in shards.items()
        }
    return upgraded


def dump_latents_file(content: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of the present latents.json -> the content of one of version 1.

    records: of all shards, once they are finished.
    """
    return {
        "format": content["format"],
        "version": 1,
        "complete": content["complete"],
        "dtype": "float16",
        "job": {name: value for name, value in content["job"].items() if name not in JOB_LACKS},
        "samples": content["samples"],
        "scale": content["scale"],
        "statistics": content["statistics"],
        "shards": {name: len(record["keys"]) for name, record in records.items()},
        "sizes": {name: dict(zip(record["keys"], record["sizes"], strict=True)) for name, record in records.items()},
        "quarantined": {name: dict(record["quarantined"]) for name, record in records.items() if record["quarantined"]},
    }
