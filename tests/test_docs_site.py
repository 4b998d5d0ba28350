"""The pages: links lead somewhere on a forge, and docstrings become reStructuredText that reads as they do.

`make docs` builds the site, where a warning is an error; `.ci/run` calls it.
"""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "configs" / "RESULTS.md"])


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    spec = spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """The names by which forges link to its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_and_headings_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not heading or heading in anchors(target), link


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_arguments_become_a_list(docstrings: ModuleType) -> None:
    lines = [
        "Encodes *all* of `images`, one by one.",
        "",
        "images, masks: (B, C, H, W)",
        "noise: from N(0, I); see",
        "`draw`. None gives the mode.",
        "Returns a latent_. Raises `UserError`.",
    ]
    assert [line for line in docstrings.to_rest(lines) if line] == [
        r"Encodes \*all\* of \ ``images``\ , one by one.",
        r"* **images, masks**: (B, C, H, W)",
        r"* **noise**: from N(0, I); see \ ``draw``\ . None gives the mode.",
        r"Returns a latent\_. Raises \ ``UserError``\ .",
    ]


def test_what_is_indented_or_in_columns_stays_as_it_was_drawn(docstrings: ModuleType) -> None:
    drawn = ["    total = a * b", "      + c"]
    assert docstrings.to_rest(["The sum is", *drawn, "in nats."]) == [
        *("", "The sum is", "", ""),
        *("::", "", "        total = a * b", "          + c", ""),
        *("", "in nats.", "", ""),
    ]
    table = ["psnr    decibels, of each", "        image", "ssim    none"]
    assert docstrings.to_rest(table) == ["::", "", *(f"    {line}" for line in table), ""]
