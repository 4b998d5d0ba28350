"""The licence in a model card's metadata, as the Hub wants it: an id of its list, or the name of another licence.

A licence is never made up: it is what a person names, or what a card that is already there states.
"""

from __future__ import annotations

import re

from ldm_vae.documents import DamagedFile, parse_yaml
from ldm_vae.errors import UserError
from ldm_vae.interop.card_update import UNKNOWN_LICENCE, Card

# https://huggingface.co/docs/hub/repositories-licenses of August 2026, without those of single models or their families
# (such as gemma and llama3). What is not on the Hub's list it refuses, so that it goes as `other` with a name.
HUB_LICENCES = frozenset(
    [
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "apple-amlr",
        "apple-ascl",
        "artistic-2.0",
        "bigcode-openrail-m",
        "bigscience-openrail-m",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "bsl-1.0",
        "c-uda",
        "cc",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "creativeml-openrail-m",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "fair-noncommercial-research-license",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "h-research",
        "intel-research",
        "isc",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "lgpl-lr",
        "lppl-1.3c",
        "mit",
        "mpl-2.0",
        "ms-pl",
        "ncsa",
        "odbl",
        "odc-by",
        "ofl-1.1",
        "openmdw-1.0",
        "openmdw-1.1",
        "openrail",
        "openrail++",
        "osl-3.0",
        "pddl",
        "postgresql",
        "unlicense",
        "wtfpl",
        "zlib",
    ]
)


def licence_metadata(licence: str | None) -> str:
    """The lines of a card's metadata. Raises UserError for what is no word, as an SPDX id is."""
    if licence is None:
        return f"license: {UNKNOWN_LICENCE}\n"
    if not re.fullmatch(r"[\w.+-]+", licence, re.ASCII):
        raise UserError(f"--licence {licence!r}", "give an SPDX id such as mit or cc-by-4.0, or one word")
    name = licence.lower()
    return f"license: {name}\n" if name in HUB_LICENCES else f"license: other\nlicense_name: {name}\n"


def licence_in(card: str | None) -> str | None:
    """The licence that a card states; None where it states none, or its metadata cannot be read."""
    try:
        values = parse_yaml(Card.parse(card or "").header, "the card")
    except DamagedFile:
        return None
    if not isinstance(values, dict):
        return None
    stated = values.get("license_name") if values.get("license") == "other" else values.get("license")
    known = isinstance(stated, str) and re.fullmatch(r"[\w.+-]+", stated, re.ASCII) and stated != UNKNOWN_LICENCE
    return stated if known else None
