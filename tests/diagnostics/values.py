"""Looks up what a section found: a number by its name, the level of a verdict, a line without gaps."""

from __future__ import annotations

from ldm_vae.diagnostics.findings import Line, Section


def value(section: Section, name: str) -> float | None:
    return next(number.value for number in section.numbers if number.name == name)


def measured(section: Section, name: str) -> float:
    """A number that must be there."""
    found = value(section, name)
    assert found is not None, f"{name} is missing"
    return found


def level(section: Section, name: str) -> str:
    return next(verdict.level for verdict in section.verdicts if verdict.name == name)


def heights(line: Line) -> list[float]:
    """The y of a line that must not have gaps."""
    found = [y for y in line.y if y is not None]
    assert len(found) == len(line.y), f"{line.label} has gaps"
    return found
