"""results.json -> typed numbers: metrics of the codec and of what it is held against, image by image.

What the file holds beyond that is left alone, so that the report reads files of other versions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from ldm_vae.errors import UserError


def _finite(value: Any) -> Any:
    """JSON written by Python may hold NaN and infinity, which are no measurements."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Value = Annotated[float | None, BeforeValidator(_finite)]


class ImageRow(BaseModel):
    """One image. A metric stands either in `values` or, with the reason, in `missing`."""

    key: str
    height: int | None = None  # px
    width: int | None = None  # px
    values: dict[str, Value] = {}
    missing: dict[str, str] = {}


class Measured(BaseModel):
    """One codec or baseline.   notes: what to know of a metric, such as that it is unreliable."""

    name: str = ""
    kind: str = "model"  # or "baseline"
    metrics: dict[str, Value] = {}
    missing: dict[str, str] = {}
    notes: dict[str, str] = {}
    protocol: dict[str, Any] = {}
    per_image: list[ImageRow] = []


class Interval(BaseModel):
    """Mean over images of ours minus theirs, with its 95 % paired bootstrap interval.

    verdict: gain, loss, noise or too few images; empty in older files.
    """

    difference: Value = None
    low: Value = None
    high: Value = None
    images: int | None = None
    verdict: str = ""


class Comparison(BaseModel):
    name: str  # of the other
    metrics: dict[str, Interval] = {}


class StoredResults(Measured):
    """The first model of `ldm-vae evaluate`, and what it was compared with on the same images."""

    others: list[Measured] = []
    comparisons: list[Comparison] = []

    @staticmethod
    def read(path: Path) -> StoredResults:
        """Raises UserError where the file is no such thing; FileNotFoundError where there is none."""
        try:
            return StoredResults.model_validate(json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{path} cannot be read", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read", " ".join(str(error).split())) from None
