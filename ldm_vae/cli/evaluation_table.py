"""Prints the results of codecs: a table of metrics, the protocol in two lines, and last who is better by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm_vae.choices import IMAGE_METRICS
from ldm_vae.evaluation.compare import CONFIDENCE, PairedDifference
from ldm_vae.evaluation.results import Results
from ldm_vae.evaluation.shared import shared_entries, shared_reasons
from ldm_vae.evaluation.wording import advantage
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.printable import counted, printable

MARK = "*"  # beside a value that has a note


def print_metrics(results: Mapping[str, Results]) -> None:
    """The best value of a row is bold.

    results: results of the same metrics, by name of the codec.
    """
    console = Console(markup=False)
    table = Table("metric", box=None, pad_edge=False, header_style="bold")
    for name in results:
        table.add_column(printable(name), justify="right", overflow="fold")
    for metric in next(iter(results.values())).metrics:
        described = describe_metric(metric)
        values = [one.metrics[metric] for one in results.values()]
        known = {value for value in values if value is not None}
        best = {"higher": max, "lower": min}[described.better](known) if described.better and len(known) > 1 else None
        cells = [
            Text(_value(one, metric), style="bold" if value is not None and value == best else "")
            for one, value in zip(results.values(), values, strict=True)
        ]
        table.add_row(_title(metric), *cells)
    console.print(table)
    for word, field in (("missing", "missing"), (MARK, "notes")):
        for reason, metrics, names in shared_reasons({name: getattr(one, field) for name, one in results.items()}):
            titles = "; ".join(describe_metric(metric).title for metric in metrics)
            line = f"{word} {titles}{_whose(names, results)}: {reason}"
            console.print(printable(line), soft_wrap=True, highlight=False)


def print_protocol(results: Mapping[str, Results], files: list[Path]) -> None:
    """Two lines: what was measured on which images, and of what. An entry in which codecs differ names them.

    files: where the whole protocol stands.
    """

    models = {name: one for name, one in results.items() if "weights_sha256" in one.protocol} or results

    def said(name: str, words: str = "{}") -> list[str]:
        shared = shared_entries({codec: {name: one.protocol.get(name)} for codec, one in models.items()})
        return [words.format(text) + _whose(names, models) for (_, text), names in shared.items() if text != "None"]

    first = next(iter(results.values()))
    left_out = first.protocol.get("left_out")
    broken = f" ({left_out} left out as broken)" if left_out else ""
    prepared = [*said("resize", "resize {}"), *said("crop", "crop {}"), *said("latent"), *said("precision")]
    measured = [*said("protocol", "protocol {}"), *said("step", "step {}")]
    where = f"all of it: {', '.join(map(str, files))}" if files else "--json FILE writes all of it"
    images = counted(len(first.per_image), "image")
    lines = [f"{images}{broken} of {first.protocol.get('shards')}, {', '.join(prepared)}"]
    lines.append(f"{', '.join(measured)}; {where}")
    console = Console(markup=False)
    console.print()
    for line in lines:
        console.print(printable(line), soft_wrap=True, highlight=False)


def print_comparisons(first: str, comparisons: Mapping[str, Mapping[str, PairedDifference]], images: int) -> None:
    """Who is better, a line for each metric and each other codec.

    comparisons: differences by metric, by name of the other codec.
    images: number of images that were measured.
    """
    console = Console(markup=False)
    for name, differences in comparisons.items():
        pair = printable(first), printable(name)
        heading = f"{pair[0]} and {pair[1]}, image by image (with {CONFIDENCE:.0%} intervals)"
        console.print(Text(f"\n{heading}", style="bold"), soft_wrap=True)
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for metric in IMAGE_METRICS:
            if (paired := differences.get(metric)) is not None:
                table.add_row(_title(metric), _sentence(metric, pair, paired, images))
        console.print(table)


def _title(metric: str) -> str:
    described = describe_metric(metric)
    unit = f"({described.unit})" if described.unit else ""
    return " ".join(filter(None, (described.title, unit, described.arrow)))


def _value(results: Results, metric: str) -> str:
    value = results.metrics[metric]
    shown = "missing" if value is None else f"{value:.{describe_metric(metric).decimals}f}"
    return shown + (MARK if metric in results.notes else "")


def _sentence(metric: str, pair: tuple[str, str], paired: PairedDifference, images: int) -> Text:
    decimals = describe_metric(metric).decimals
    interval = None if paired.low is None or paired.high is None else (paired.low, paired.high)
    found = advantage(
        metric, pair, paired.difference, interval, paired.verdict(metric), lambda value: f"{value:.{decimals}f}"
    )
    some = "" if paired.images == images else f", {paired.images} of {images} images"
    return Text(f"{found}{some}", style="bold" if found.sure else "")


def _whose(names: Sequence[str], results: Mapping[str, Results]) -> str:
    return "" if len(names) == len(results) else f" ({', '.join(names)})"
