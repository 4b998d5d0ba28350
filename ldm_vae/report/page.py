"""Writes runs as one HTML file, which contains everything it shows and loads nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from ldm_vae.atomic import atomic_file
from ldm_vae.devices import local_device
from ldm_vae.errors import UserError
from ldm_vae.extras import extra
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.passwords import NEVER_STORED, keep_aside, without_secrets
from ldm_vae.recipe import leaves
from ldm_vae.report import comparison, curves, diagnosis, environment, tables
from ldm_vae.report.album import Album, make_album
from ldm_vae.report.charts import Drawing, draw
from ldm_vae.report.gallery import Gallery, choose, make_gallery, worst_first
from ldm_vae.report.numbers import printable, prose, short
from ldm_vae.report.pictures import DIVERGING, PICTURE_FORMAT, SEQUENTIAL, gradient
from ldm_vae.report.run import Gap, RunFolder, read_run
from ldm_vae.report.weights import newest_codec

with extra("report"):
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

logger = logging.getLogger(__name__)
REPORT_BYTES = 10_000_000  # bytes of the file at most
TEMPLATES = "templates"
HEADLINES = ("psnr", "lpips_vgg", "lpips_alex", "rfid", "ssim")  # the summary shows the first four that were measured


@dataclass(frozen=True)
class Contents:
    """What the page shows. The templates use the fields by name.

    With several runs, only curves and comparisons show all of them; the rest shows the first.

    command: the command that makes the report, as the person typed it.
    made: when the report is made.
    facts: what the network is, in words.
    drawings: charts of the logs, by part of the section.
    gaps: what is missing.
    """

    runs: list[RunFolder]
    command: str
    made: datetime
    album: Album | None
    facts: dict[str, str]
    drawings: dict[str, list[Drawing]]
    sections: list[diagnosis.ShownSection]
    verdicts: list[diagnosis.ShownVerdict]
    gaps: list[Gap] = field(default_factory=list)

    @property
    def run(self) -> RunFolder:
        return self.runs[0]

    @property
    def shown(self) -> dict[str, str]:
        """The identifier in the page of each image that the gallery shows, by key."""
        return {image.key: image.identifier for image in self.album.images} if self.album else {}

    @property
    def headlines(self) -> list[tuple[Any, str, str]]:
        """Metric, value and source: from the evaluation of the present weights, or else from the last validation."""
        results, step = self.run.results, self.run.last_step("validation/")
        source = "held-out images" if results else f"last validation while training, at step {short(step or 0)}"
        values = {n: results.metrics.get(n) if results else self.run.last(f"validation/{n}") for n in HEADLINES}
        return [(describe_metric(n), short(v), source) for n, v in values.items() if v is not None][:4]

    @property
    def stale(self) -> list[str]:
        """Files that were made with other weights than the run has now; for results.json see evaluations.py."""
        inspection, statistics, now = self.run.inspection, self.run.statistics, self.run.weights
        digests = {
            "latent_statistics.json": statistics.codec if statistics else None,
            "inspection.json": inspection.protocol.get("weights_sha256") if inspection else None,
        }
        return [name for name, digest in digests.items() if digest and now is not None and now.sha256 != digest]


def write_report(names: Sequence[str], output: Path | None, shards: str | None, command: str) -> Path:
    """Writes the report and returns its path.

    names: run folders.
    output: the file; None: report.html in the first run.
    shards: held-out images instead of the recipe's.
    command: the command as the person typed it.

    Raises UserError where a folder is no run, or the file would be too large.
    """
    contents = collect_contents(names, None if shards is None else keep_aside(shards), command)
    page = render(contents).encode("utf-8", "replace")
    if len(page) > REPORT_BYTES:
        what = f"the report would have {len(page) / 1e6:.1f} MB, more than {REPORT_BYTES / 1e6:.0f}"
        raise UserError(what, "give fewer runs at a time")
    path = output or Path(names[0]) / "report.html"
    with atomic_file(path) as stage:
        stage.write_bytes(page)
    return path


def collect_contents(names: Sequence[str], shards: str | None, command: str) -> Contents:
    first = read_run(names[0], shards)
    others = [replace(read_run(name, shards), codec=None) for name in names[1:]]  # pictures are of the first alone
    runs = [first, *others]
    gaps = list(first.gaps)
    gallery = _gallery(first, shards, gaps)
    drawn = {
        part: [d for i, chart in enumerate(charts) if (d := draw(chart, f"curve-{place}-{i}"))]
        for place, (part, charts) in enumerate(curves.charts(runs).items())
    }
    inspection = first.inspection
    return Contents(
        runs=runs,
        command=command,
        made=datetime.now(UTC),
        album=make_album(gallery) if gallery else None,
        facts=gallery.facts if gallery else {},
        drawings=drawn,
        sections=diagnosis.sections(inspection, first.inspection_folder) if inspection else [],
        verdicts=diagnosis.verdicts(inspection) if inspection else [],
        gaps=gaps,
    )


def _without_secrets(value: object) -> object:
    """What is shown of a value: runs of earlier versions hold URLs with passwords."""
    return without_secrets(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(contents: Contents) -> str:
    loader = Environment(
        loader=PackageLoader("ldm_vae.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_secrets,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader.filters |= {"short": short, "printable": printable, "prose": prose, "setting": tables.setting}
    loader.filters["quoted"] = shlex.quote
    script = _asset("script.js")
    return loader.get_template("page.html").render(
        c=contents,
        run=contents.run,
        gaps={
            section: [g for g in contents.gaps if g.section == section]
            for section in {g.section for g in contents.gaps}
        },
        evaluation=_evaluation(contents.run),
        comparison=comparison,
        tables=tables,
        curves=curves,
        diagnosis=diagnosis,
        leaves=leaves,
        environment=environment.describe_environment(),
        bars={"difference": gradient(SEQUENTIAL), "latent": gradient(DIVERGING)},
        picture_format=PICTURE_FORMAT,
        style=Markup(_asset("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _gallery(run: RunFolder, shards: str | None, gaps: list[Gap]) -> Gallery | None:
    """The images of the run; None, with a gap that says why, where there is no codec or no image."""
    source = shards or run.validation_shards
    if source is None:
        sentence = "The recipe names no held-out shards, so there are no pictures."
        gaps.append(Gap("images", sentence, f"ldm-vae report {shlex.quote(run.name)} --shards SHARDS"))
        return None
    try:
        codec = (run.codec or newest_codec(run.path)).to(local_device())
    except UserError as error:
        sentence = f"Held-out images cannot be shown, because there is no codec: {error}."
        gaps.append(Gap("images", sentence, f"python -m train {shlex.quote(run.name)}/recipe.yaml"))
        return None
    metric, rows = worst_first(run.results.per_image if run.results else [])
    try:
        return make_gallery(codec, source, choose(rows, describe_metric(metric).title if metric else ""))
    except UserError as error:
        sentence = f"Held-out images cannot be shown: {error}. Of a server's images: {NEVER_STORED}."
        gaps.append(Gap("images", sentence, f"ldm-vae report {shlex.quote(run.name)} --shards SHARDS"))
        return None


def _evaluation(run: RunFolder) -> dict[str, Any]:
    """The tables of results.json."""
    found = run.evaluations
    shown: dict[str, Any] = {"earlier": tables.earlier_table(found), "images": None, "table": None, "more": []}
    if found.current is None:
        return shown
    shown["more"] = [
        (tables.protocol_line(one.protocol), tables.metric_table(tables.evaluation_columns(one)), leaves(one.protocol))
        for one in found.more
    ]
    return shown | {
        "table": tables.metric_table(tables.evaluation_columns(found.current)),
        "differences": tables.difference_table("this codec", found.current.comparisons),
        "images": tables.image_table(found.current.per_image) if found.current.per_image else None,
        "line": tables.protocol_line(found.current.protocol),
        "protocol": dict(leaves(found.current.protocol)),
    }


def _asset(name: str) -> str:
    return (files("ldm_vae.report") / TEMPLATES / name).read_text(encoding="utf-8")
