"""The meaning of each field of a recipe, as text: `python -m train --fields` and docs/recipe.md.

The text comes from the schema and from the docstrings under the fields: a new field needs no line here.
`python -m train.fields > docs/recipe.md` makes the page.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.text import Text

from ldm_vae.errors import UserError
from ldm_vae.recipe import Config, nearest, with_all_kinds
from train.recipe import Recipe

Schema = Mapping[str, Any]  # JSON schema, as pydantic writes it
WIDTH = 120  # columns; longer lines are hard to read
TYPE_WORDS = {"integer": "integer", "number": "number", "string": "text", "object": "mapping", "array": "list"}
BOUNDS = {
    "exclusiveMinimum": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
    "multipleOf": "a multiple of",
}

INTRODUCTION = """# Recipes
This page is made by `python -m train.fields > docs/recipe.md`; `python -m train --fields [SECTION]` prints the same.

A recipe is a YAML file that says what a run is. It holds what differs from the defaults below, or from the recipe that
its line `base: other.yaml` names, by a path relative to the file; the folder `configs/` has examples. On the command
line, `a.b=value` overrides a field:

```
python -m train configs/kl_f8_c4.yaml optimizer.lr=5e-5 data.image.crop=128 discriminator=null
```
Bases, files and overrides are merged in this order: sections field by field, while a list replaces the whole list. A
section whose `kind` changes is replaced as a whole, because its other fields belonged to the former kind. A section
that is left out has all its defaults, written `{}` below. Files and overrides are YAML 1.2: `1e-5` is a number, `no` is
a word, `null` is nothing. Types are checked, and a mistyped field is refused with the name of the nearest one.
`--dry-run` prints what a recipe changes of its base; a run keeps all fields, resolved, as `recipe.yaml` in its folder.
"""


@dataclass(frozen=True)
class RecipeField:
    """One field.

    name: its name.
    type: its type in words.
    default: its default as YAML, or "required".
    meaning: its docstring, in one line.
    section: whether it holds further fields, which have a table of their own.
    """

    name: str
    type: str
    default: str
    meaning: str
    section: bool

    @property
    def summary(self) -> str:
        return f"{self.type}; {'required' if self.default == 'required' else f'default {self.default}'}"


@dataclass(frozen=True)
class RecipeSection:
    """One section.

    path: its dotted path; empty for the recipe itself.
    condition: `a.kind=x` for a section that exists only with this kind; else empty.
    summary: type and default of the section as a whole.
    meaning: its docstring, in one line.
    fields: its fields, in order.
    """

    path: str
    condition: str
    summary: str
    meaning: str
    fields: tuple[RecipeField, ...]

    @property
    def title(self) -> str:
        condition = self.condition.replace(f"{self.path}.", "")  # its own kind needs no path
        return (self.path or "The recipe itself") + (f" where {condition}" if condition else "")

    def path_of(self, field: RecipeField) -> str:
        return _join(self.path, field.name)


def recipe_sections(recipe: type[Config] = Recipe) -> list[RecipeSection]:
    """The recipe itself, then each section followed by the sections in it. A section with kinds comes once for each."""
    schema = with_all_kinds(recipe).model_json_schema()
    return list(_walk_sections("", "", "", schema, schema.get("$defs", {})))


def show_fields(asked: Sequence[str]) -> None:
    """Prints the sections or fields of these names, or all where none is given. Raises UserError for an unknown one."""
    sections = recipe_sections()
    found = [section for name in asked for section in find_fields(sections, name)] if asked else sections
    print_fields(found)


def find_fields(sections: Sequence[RecipeSection], asked: str, recipe: type[Config] = Recipe) -> list[RecipeSection]:
    """The section called `asked` with those in it, or the one field of that name. Raises UserError for neither."""
    if found := [section for section in sections if f"{section.path}.".startswith(f"{asked}.")]:
        return found
    holders = [(section, field) for section in sections for field in section.fields if section.path_of(field) == asked]
    if holders:  # several, where sections of several kinds have that field
        return [replace(section, fields=(field,)) for section, field in holders]
    raise UserError(f"a recipe has no section or field {asked!r}", nearest(recipe, asked.split(".")))


def print_fields(sections: Sequence[RecipeSection]) -> None:
    """Prints to stdout, as wide as the terminal is."""
    console = Console(soft_wrap=True, highlight=False)
    width = min(console.width, WIDTH)
    for section in sections:
        console.print(Text.assemble((section.title, "bold"), f"  {section.summary}".rstrip()))
        console.print(_paragraph(section.meaning, width), end="\n\n")
        for field in section.fields:
            console.print(Text.assemble("  ", (section.path_of(field), "bold"), f"  {field.summary}"))
            console.print(_paragraph(field.meaning, width, indent=6 * " "))
        console.print()


def markdown(sections: Sequence[RecipeSection]) -> str:
    """The page: the introduction, then a table for each section."""
    anchors = {section.path: _anchor(section.title) for section in reversed(sections)}  # of several kinds, the first
    blocks = [INTRODUCTION]
    for section in sections:
        rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
        for field in section.fields:
            name = f"`{field.name}`"
            if field.section:
                name = f"[{name}](#{anchors[section.path_of(field)]})"
            default = "required" if field.default == "required" else f"`{field.default}`"
            rows.append(f"| {name} | {field.type} | {default} | {field.meaning.replace('|', chr(92) + '|')} |")
        blocks.append(f"## {section.title}\n{section.meaning}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(blocks)


def _paragraph(text: str, width: int, indent: str = "") -> Text:
    """Text wrapped between words only, so that names stay whole."""
    wrapped = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return Text(wrapped)


def _walk_sections(path: str, condition: str, summary: str, model: Schema, models: Schema) -> Iterator[RecipeSection]:
    required = model.get("required", ())
    fields = {
        name: RecipeField(
            name=name,
            type=_type(schema),
            default="required" if name in required else _default(schema, models),
            meaning=_one_line(schema.get("description", "")),
            section=bool(_references(schema)),
        )
        for name, schema in model["properties"].items()
    }
    yield RecipeSection(path, condition, summary, _one_line(model.get("description", "")), tuple(fields.values()))
    for name, schema in model["properties"].items():
        inner, kinds = _join(path, name), _references(schema)
        for kind in kinds:
            further = f"{inner}.{_kind(kind, models)}" if len(kinds) > 1 else ""
            conditions = ", ".join(filter(None, (condition, further)))
            yield from _walk_sections(inner, conditions, fields[name].summary, models[kind], models)


def _references(schema: Any) -> list[str]:
    """The names in the schema of the models that a field may hold; several where there are several kinds."""
    if isinstance(schema, list):
        return [name for part in schema for name in _references(part)]
    if not isinstance(schema, Mapping):
        return []
    if "$ref" in schema:
        return [schema["$ref"].rpartition("/")[2]]
    parts = ("anyOf", "oneOf", "items", "prefixItems", "additionalProperties")
    return list(dict.fromkeys(name for part in parts for name in _references(schema.get(part))))


def _kind(name: str, models: Schema) -> str:
    """The condition `kind=x` that picks this model among several."""
    kind = models[name]["properties"].get("kind", {})
    return f"kind={_either(kind['enum'] if 'enum' in kind else [kind.get('const', name)])}"


def _type(schema: Schema, plural: bool = False) -> str:
    """The type in words; plural after a number or after "list of"."""
    ending = "s" if plural else ""
    if "$ref" in schema:
        return f"section{ending}"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(option, plural) for option in options))
    if "enum" in schema or "const" in schema:
        return _either(schema.get("enum") or [schema["const"]])
    if "items" in schema or "prefixItems" in schema:
        return _list_type(schema, ending)
    if schema.get("type") in ("boolean", "null"):
        return "true or false" if schema["type"] == "boolean" else "null"
    name = schema.get("format") if schema.get("format") == "path" else TYPE_WORDS.get(schema.get("type", ""), "value")
    bounds = [f"{sign} {_bound(schema[bound])}" for bound, sign in BOUNDS.items() if bound in schema]
    return f"{name}{ending} {', '.join(bounds)}".rstrip()


def _list_type(schema: Schema, ending: str) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    places = schema.get("prefixItems") or [schema["items"]]
    if any(place != places[0] for place in places):
        return f"[{', '.join(_type(place) for place in places)}]"
    if least is not None and least == most:
        return f"list{ending} of {least} {_type(places[0], plural=True)}"
    limits = [f"{word} {limit}" for word, limit in (("at least", least), ("at most", most)) if limit]
    return ", ".join([f"list{ending} of {_type(places[0], plural=True)}", *limits])


def _default(schema: Schema, models: Schema) -> str:
    """The default as YAML. A section is written as what differs from the defaults of its own fields."""
    kinds = _references(schema)
    value = schema.get("default", {}) if kinds else schema["default"]
    if kinds and isinstance(value, Mapping):
        named = [kind for kind in kinds if _kind(kind, models) == f"kind={value.get('kind')}"]
        fields = models[(named or kinds)[0]]["properties"]
        kept = ("kind",) if len(kinds) > 1 else ()
        value = {name: part for name, part in value.items() if name in kept or part != fields[name].get("default")}
    return _yaml(value)


def _yaml(value: Any) -> str:
    """YAML in one line, with quotes only where a word would be read as something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_yaml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    plain = isinstance(value, str) and re.fullmatch(r"(?!(null|true|false)$)[A-Za-z][\w./-]*", value, re.IGNORECASE)
    return value if plain else json.dumps(value)


def _bound(value: float) -> str:
    """A bound as text: 2^63 is shorter than its nineteen digits."""
    if isinstance(value, int) and value > 2**31 and value.bit_count() == 1:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _either(choices: Sequence[Any]) -> str:
    words = [_yaml(choice) for choice in choices]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _one_line(docstring: str) -> str:
    return " ".join(docstring.split())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _anchor(title: str) -> str:
    """The link to a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    print(markdown(recipe_sections()), end="")
