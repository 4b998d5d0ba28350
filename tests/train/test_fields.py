"""What is said of a recipe's fields: every field has a meaning, every kind of field is put into words, and
docs/recipe.md and `python -m train --fields` say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from ldm_vae.data.stream.reader import DataConfig
from ldm_vae.errors import UserError
from ldm_vae.recipe import Config, load_recipe
from tests.conftest import ROOT
from train.__main__ import app
from train.fields import RecipeSection, find_fields, markdown, print_fields, recipe_sections
from train.recipe import MODELS, Recipe


class Inner(Config):
    """A part of a part."""

    depth: Annotated[int, Field(ge=1)] = 2
    """Blocks."""


class Plain(Config):
    """The plain kind."""

    kind: Literal["plain"] = "plain"
    """Picks it."""

    width: int = 3
    """Channels | of both."""


class Deep(Config):
    """The deep kind."""

    kind: Literal["deep"] = "deep"
    """Picks it."""

    inner: Inner = Inner(depth=5)
    """Its part."""


Part = Annotated[Plain | Deep, Field(discriminator="kind")]


class Small(Config):
    """Everything
    that a field can be."""

    name: str
    """A name
    over two lines."""

    size: Annotated[int, Field(gt=0, lt=2**40, multiple_of=4)] = 8
    """A size."""

    share: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """A share."""

    pair: tuple[float, float] = (0.0, 1e-6)
    """A pair."""

    mixed: tuple[int, str] = (1, "no way")
    """A mixed pair."""

    words: tuple[Literal["a", "b", "c"], ...] = ("a",)
    """Words."""

    some: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    """Some."""

    file: Path | None = None
    """A file."""

    flag: bool = True
    """A flag."""

    empty: str = ""
    """Nothing."""

    word: str = "true"
    """A word that looks like something else."""

    part: Part = Deep()
    """One of two kinds."""

    maybe: Part | None = None
    """One of two kinds, or nothing."""

    parts: tuple[Part, ...] = ()
    """Any number of them."""

    undocumented: int = 0


def small() -> list[RecipeSection]:
    return recipe_sections(Small)


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("name", "text", "required"),
        ("size", "integer > 0, < 2^40, a multiple of 4", "8"),
        ("share", "number >= 0, <= 0.5 or null", "null"),
        ("pair", "list of 2 numbers", "[0.0, 1e-06]"),
        ("mixed", "[integer, text]", '[1, "no way"]'),
        ("words", "list of a, b or c", "[a]"),
        ("some", "list of integers, at least 1", "[1]"),
        ("file", "path or null", "null"),
        ("flag", "true or false", "true"),
        ("empty", "text", '""'),
        ("word", "text", '"true"'),
        ("part", "section", "{kind: deep}"),
        ("maybe", "section or null", "null"),
        ("parts", "list of sections", "[]"),
    ],
)
def test_types_and_defaults_in_words(name: str, kind: str, default: str) -> None:
    field = next(field for field in small()[0].fields if field.name == name)
    assert (field.type, field.default) == (kind, default)


def test_every_kind_of_a_section_has_its_own_fields() -> None:
    assert [section.title for section in small()] == [
        "The recipe itself",
        *("part where kind=plain", "part where kind=deep", "part.inner where part.kind=deep"),
        *("maybe where kind=plain", "maybe where kind=deep", "maybe.inner where maybe.kind=deep"),
        *("parts where kind=plain", "parts where kind=deep", "parts.inner where parts.kind=deep"),
    ]
    assert [field.name for field in small()[1].fields] == ["kind", "width"]
    assert next(field.default for field in small()[2].fields if field.name == "inner") == "{depth: 5}"


def test_meanings_are_the_docstrings_in_one_line() -> None:
    (whole, *_) = small()
    assert whole.meaning == "Everything that a field can be."
    assert whole.fields[0].meaning == "A name over two lines."
    assert whole.fields[-1].meaning == ""


def test_sections_and_fields_are_found_by_name() -> None:
    assert [section.path for section in find_fields(small(), "part", Small)] == ["part", "part", "part.inner"]
    (one,) = find_fields(small(), "part.width", Small)
    assert [field.name for field in one.fields] == ["width"]
    assert len(find_fields(small(), "part.kind", Small)) == 2


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ("optimiser", "did you mean 'optimizer'?"),
        ("loss.rat", "did you mean 'loss.rate'?"),
        ("los.rate", "did you mean 'loss.rate'?"),
        ("lr", "did you mean 'optimizer.lr'?"),
        ("configs/demo_cpu.yaml", "known here are checkpoint, "),
    ],
)
def test_an_unknown_name_is_told_the_nearest(asked: str, remedy: str) -> None:
    with pytest.raises(UserError, match=re.escape(remedy)):
        find_fields(recipe_sections(), asked)


def test_every_field_and_section_of_a_recipe_says_what_it_means() -> None:
    silent = [section.title for section in recipe_sections() if not section.meaning]
    silent += [section.path_of(field) for section in recipe_sections() for field in section.fields if not field.meaning]
    assert not silent, f"write a docstring under {silent}, a sentence with the unit"


def test_defaults_are_those_of_the_recipe_as_yaml() -> None:
    sections = reversed(recipe_sections())  # of several kinds the first one, the default, comes last and counts
    defaults = {section.path_of(field): field.default for section in sections for field in section.fields}
    given = {name: default for name, default in defaults.items() if default != "required"}
    known = MODELS.config(MODELS.default).model_fields
    others = [name for name in given if name.startswith("model.") and name.split(".")[1] not in known]
    chosen = [name for name in given if not name.startswith("data.train.") and name not in others]
    overrides = [f"{name}={given[name]}" for name in chosen]
    loaded = load_recipe(Recipe, ROOT / "configs" / "base.yaml", overrides)
    data = DataConfig(train=loaded.data.train, batch=loaded.data.batch)
    assert loaded == Recipe(output=loaded.output, steps=loaded.steps, data=data)


def test_the_page_is_what_the_command_in_its_header_makes() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert page == markdown(recipe_sections()), "make it anew: python -m train.fields > docs/recipe.md"
    assert "made by `python -m train.fields > docs/recipe.md`" in page
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall("(?m)^## (.*)$", page)}
    assert set(re.findall(r"\(#(.*?)\)", page)) <= headings


def test_markdown_of_several_kinds_and_of_bars() -> None:
    page = markdown(small())
    assert r"| `width` | integer | `3` | Channels \| of both. |" in page
    assert "[`part`](#part-where-kindplain)" in page and "## part where kind=plain\n" in page


def test_the_terminal_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields(recipe_sections())
    said = capsys.readouterr().out
    words = " ".join(said.split())
    for section in recipe_sections():
        assert f"{section.title} {section.summary}".strip() in words and section.meaning in words
        for field in section.fields:
            assert f"{section.path_of(field)} {field.summary} {field.meaning}" in words
    assert max(map(len, said.splitlines())) <= 120


def test_the_command_needs_no_recipe() -> None:
    command = [sys.executable, "-m", "train", "--fields", "loss.rate"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stderr == ""
    assert shown.stdout.startswith("loss.rate  section; default {}\n")
    assert "  loss.rate.weight  number >= 0; default 1e-06\n" in shown.stdout


def test_the_command_refuses_what_it_does_not_know() -> None:
    unknown = CliRunner().invoke(app, ["--fields", "optimiser"])
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr == "train: a recipe has no section or field 'optimiser': did you mean 'optimizer'?\n"
    nothing = CliRunner().invoke(app, [])
    assert nothing.exit_code == 2 and "Missing argument 'RECIPE'" in nothing.stderr
