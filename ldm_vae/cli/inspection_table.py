"""Prints an inspection: whether the reconstruction is any good, then numbers and protocol, and verdicts at the end."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ldm_vae.diagnostics.findings import Inspection, Quantity, Section, Verdict
from ldm_vae.diagnostics.findings import Table as FoundTable
from ldm_vae.printable import counted, printable

LEVEL_COLOURS = {"bad": "red", "warning": "yellow", "unknown": "cyan", "good": "green"}  # the worst first
SHORT = 12  # characters of a hash that are shown; inspection.json has it whole


def print_inspection(inspection: Inspection) -> None:
    console = Console(markup=False, highlight=False)  # keys and globs may hold square brackets
    first, *others = inspection.sections
    print_section(console, first)
    console.print(_numbers(others))
    console.print(_protocol(inspection.protocol))
    console.print(_verdicts(inspection))
    counts = {level: sum(one.level == level for one in inspection.verdicts) for level in LEVEL_COLOURS}
    console.print(", ".join(counted(n, level, level) for level, n in counts.items() if n))


def print_section(console: Console, section: Section) -> None:
    """Prints a section with tables: verdict, tables, and which numbers are missing."""
    console.print(Text(section.title, style="bold"))
    for verdict in section.verdicts:
        console.print(Padding(_worded(verdict), (0, 0, 1, 2)))
    for table in section.tables:
        console.print(Padding(_found(table), (0, 0, 0, 1)))
        for line in (table.definition, *table.notes):
            console.print(Padding(Text(printable(line), style="dim"), (0, 0, 0, 2)))
        console.print()
    for number in section.numbers:
        if number.missing and number.value is None:
            console.print(Padding(printable(f"{number.title} is missing: {number.missing}"), (0, 0, 0, 2)))


def _worded(verdict: Verdict) -> Text:
    text = Text(verdict.level, style=LEVEL_COLOURS[verdict.level])
    text.append(f"  {printable(verdict.statement)}", style="default")
    if verdict.advice:
        text.append(f"\n→ {printable(verdict.advice)}", style="default")
    return text


def _found(found: FoundTable) -> Table:
    table = Table(title=printable(found.title), title_justify="left", title_style="", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(found.columns):
        table.add_column(printable(name), justify="right" if i else "left", no_wrap=not i)
    for row in found.rows:
        table.add_row(*map(printable, row))
    return table


def _numbers(sections: list[Section]) -> Table:
    table = Table("number", title="Numbers", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("value", justify="right")
    table.add_column("unit")
    for section in sections:
        if section.numbers:
            table.add_row(Text(section.title, style="italic"))
        for number in section.numbers:
            table.add_row(Padding(number.title, (0, 0, 0, 2)), *_value(number))
    return table


def _value(number: Quantity) -> tuple[str, str]:
    if number.value is None:
        return "missing", printable(number.missing)
    return f"{number.value:.4g}", number.unit.removesuffix("s") if number.value == 1 else number.unit


def _protocol(protocol: dict[str, Any]) -> Table:
    table = Table(title="Protocol", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in protocol.items():
        shown = str(value)[:SHORT] if name.endswith("sha256") else _words(value)
        table.add_row(name.replace("_", " "), printable(shown))
    return table


def _words(value: Any) -> str:
    """A value of the protocol in words; the scale is a dictionary."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items() if part is not None) or "none"
    return "none" if value is None else str(value)


def _verdicts(inspection: Inspection) -> Table:
    """Those of the first section first, then the worst first."""
    table = Table(
        "", "verdict", "why, and what to try", title="Verdicts", title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    first = inspection.sections[0].verdicts
    order = list(LEVEL_COLOURS)
    rest = [one for section in inspection.sections[1:] for one in section.verdicts]
    for verdict in (*first, *sorted(rest, key=lambda one: order.index(one.level))):
        text = printable(verdict.statement) + (f"\n→ {printable(verdict.advice)}" if verdict.advice else "")
        level = Text(verdict.level, style=LEVEL_COLOURS[verdict.level])
        table.add_row(level, verdict.name.replace("_", " "), text)
    return table
