"""The results.json of a run: what was measured on its codec, at which weights, on which data, by which protocol.

The newest measurement stands at the top level, where files of earlier versions have their only one. `entries` holds the
earlier ones. A measurement is known by the weights, and by the part of its protocol that `conditions` keeps.

Other keys are kept as they are, so that files of other versions can be read and added to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ldm_vae.documents import LARGE, DamagedFile, read_json
from ldm_vae.errors import UserError
from ldm_vae.metrics.descriptions import METRIC_DESCRIPTIONS

RESULTS = "results.json"
RESULTS_FORMAT, RESULTS_VERSION = "ldm_vae.results", 1
REMEDY = "move it, and let `ldm-vae evaluate` write a new one"
OF_THE_CODEC = ("model", "codec", "step", "weights", "weights_sha256")
CONTENT = "shards_sha256"  # in a protocol: the fingerprint of the shards
# What computed a measurement. float32: exact; earlier versions do not say, and left TF32 to PyTorch.
VERSIONS = ("torch", "torchmetrics", "torch-fidelity", "float32")


def _none_unless_finite(value: Any) -> Any:
    """None for NaN and infinity, which JSON written by Python may hold and which are no measurements."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Value = Annotated[float | None, BeforeValidator(_none_unless_finite)]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ImageRow(_Open):
    """The metrics of one image. A metric is either in `values` or, with the reason, in `missing`."""

    key: str
    height: int | None = None  # px
    width: int | None = None  # px
    values: dict[str, Value] = {}
    missing: dict[str, str] = {}


class Measured(_Open):
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

    @property
    def weights(self) -> str | None:
        """sha256 of the codec's weights; None for a baseline, and where a file does not say."""
        digest = self.protocol.get("weights_sha256")
        return digest if isinstance(digest, str) else None

    @property
    def step(self) -> int | None:
        step = self.protocol.get("step")
        return step if isinstance(step, int) and not isinstance(step, bool) else None


class Interval(_Open):
    """Mean over images of this codec's value minus the other's, with its 95 % paired bootstrap interval.

    verdict: gain, loss, noise or too few images; empty in older files.
    """

    difference: Value = None
    low: Value = None
    high: Value = None
    images: int | None = None
    verdict: str = ""


class Comparison(_Open):
    """The differences to one other codec or baseline, by metric."""

    name: str  # of the other
    metrics: dict[str, Interval] = {}


class Measurement(Measured):
    """What was measured on a codec, and the others that it was compared with on the same images.

    measured: when, in UTC, ISO 8601; empty in files of earlier versions.
    """

    measured: str = ""
    others: list[Measured] = []
    comparisons: list[Comparison] = []


class StoredResults(Measurement):
    """What results.json holds: the newest measurement at the top level, and the earlier ones.

    format: empty in files of earlier versions, which may be about another run: `--json` wrote them where it was told.
    entries: the earlier measurements, the newest first.
    """

    format: str = ""
    version: int = 0
    entries: list[Measurement] = []

    @property
    def ours(self) -> bool:
        """Whether `ldm-vae evaluate` keeps this file in the run that it is about."""
        return self.format == RESULTS_FORMAT

    @property
    def measurements(self) -> list[Measurement]:
        """All measurements, the newest first; of a file of an earlier version, those of the other models, too."""
        top = Measurement.model_validate(self.model_dump(exclude_unset=True, exclude={"format", "version", "entries"}))
        others = [] if self.ours else [one for one in self.others if one.kind == "model"]
        return [top, *self.entries, *(Measurement.model_validate(one.model_dump(exclude_unset=True)) for one in others)]

    @staticmethod
    def read(path: Path) -> StoredResults:
        """Raises UserError where the file is no results.json, and FileNotFoundError where there is no file."""
        content = read_json(path, REMEDY, largest=LARGE, names=True)
        try:
            stored = StoredResults.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise DamagedFile(f"{path} cannot be read ({where})", REMEDY) from None
        if stored.format not in ("", RESULTS_FORMAT):
            raise DamagedFile(f"{path} is another program's ({stored.format[:40]!r})", REMEDY)
        if stored.version > RESULTS_VERSION:
            what = f"{path} has version {stored.version}, and this ldm_vae reads up to {RESULTS_VERSION}"
            raise UserError(what, "update ldm_vae")
        return stored


def newest_of(measurements: list[Measurement], weights: str) -> Measurement | None:
    """The newest measurement of these weights; None where there is none."""
    return next((one for one in measurements if one.weights == weights), None)


def conditions(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal in two protocols for their numbers to be compared: the data, and how they are measured.

    The codec, versions, and what belongs to single metrics are left out.
    """
    left_out = {*OF_THE_CODEC, *VERSIONS, "metric_weights", *METRIC_DESCRIPTIONS}
    return {name: value for name, value in protocol.items() if name not in left_out}


def comparable(first: Measured, other: Measured) -> bool:
    """Whether the numbers of two measurements may stand side by side.

    Shards count by what is in them, wherever they lie; files of earlier versions don't say that, and go by the place.
    """
    protocols = [conditions(measured.protocol) for measured in (first, other)]
    ignored = "shards" if all(protocol.get(CONTENT) for protocol in protocols) else CONTENT
    one, two = (json.dumps(protocol | {ignored: None}, sort_keys=True) for protocol in protocols)
    return one == two
