"""Writes numbers, sentences and names for the page."""

from __future__ import annotations

import math
import re

from markupsafe import Markup, escape

from ldm_vae.passwords import without_secrets

THIN = "\u202f"  # narrow no-break space, between thousands


def short(value: float, digits: int = 4) -> str:
    """The number in few significant digits, with a minus sign and spaced thousands: 0.05128, 294 130, 8e−05."""
    if not math.isfinite(value):
        return "–"
    if value == round(value) and abs(value) < 1e7:
        text = f"{int(value):,}".replace(",", THIN) if abs(value) >= 1e4 else str(int(value))
    elif 1e4 <= abs(value) < 1e7:
        text = f"{value:,.0f}".replace(",", THIN)
    else:
        text = f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return text.replace("-", "−")


def printable(text: str) -> str:
    """The text without what XML forbids, and without passwords in URLs.

    Names in hostile data may hold control characters and lone surrogates.
    """
    whole = without_secrets(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else THIN if c == THIN else " " if c.isspace() else "\ufffd" for c in whole)


def prose(text: str) -> Markup:
    """A sentence as HTML; `backticks` in it mark code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(printable(text)))))
