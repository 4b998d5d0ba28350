"""The types of results.json: metrics of the codec, of the others it is compared with, and of each image.

Other keys of the file are ignored, so that the report can read files of other versions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from ldm_vae.documents import LARGE, read_json
from ldm_vae.errors import UserError


def _none_unless_finite(value: Any) -> Any:
    """None for NaN and infinity, which JSON written by Python may hold and which are no measurements."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Value = Annotated[float | None, BeforeValidator(_none_unless_finite)]


class ImageRow(BaseModel):
    """The metrics of one image. A metric is either in `values` or, with the reason, in `missing`."""

    key: str
    height: int | None = None  # px
    width: int | None = None  # px
    values: dict[str, Value] = {}
    missing: dict[str, str] = {}


class Measured(BaseModel):
    """The metrics of one codec or baseline.

    notes: what one should know about a metric, such as that it is unreliable.
    """

    name: str = ""
    kind: str = "model"  # or "baseline"
    metrics: dict[str, Value] = {}
    missing: dict[str, str] = {}
    notes: dict[str, str] = {}
    protocol: dict[str, Any] = {}
    per_image: list[ImageRow] = []


class Interval(BaseModel):
    """Mean over images of this codec's value minus the other's, with its 95 % paired bootstrap interval.

    verdict: gain, loss, noise or too few images; empty in older files.
    """

    difference: Value = None
    low: Value = None
    high: Value = None
    images: int | None = None
    verdict: str = ""


class Comparison(BaseModel):
    """The differences to one other codec or baseline, by metric."""

    name: str  # of the other
    metrics: dict[str, Interval] = {}


class StoredResults(Measured):
    """The first codec of `ldm-vae evaluate`, and the others that it was compared with on the same images."""

    others: list[Measured] = []
    comparisons: list[Comparison] = []

    @staticmethod
    def read(path: Path) -> StoredResults:
        """Raises UserError where the file is no results.json, and FileNotFoundError where there is no file."""
        remedy = "let `ldm-vae evaluate --json` write it again"
        try:
            return StoredResults.model_validate(read_json(path, remedy, largest=LARGE, names=True))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{path} cannot be read", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
