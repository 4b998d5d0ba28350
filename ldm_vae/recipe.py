"""Recipes: a YAML base plus overrides -> a typed, validated, frozen configuration.

A recipe file holds what differs from its `base:` (a path relative to the file). YAML 1.2 is read, so
that `1e-5` is a number and `no` is a word. Every part declares its own `Config` beside its code.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ldm_vae.errors import UserError


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, no silent conversion of types.

    The docstring under a field says what it means and in which unit; `python -m train --fields` prints it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants", use_attribute_docstrings=True
    )


ConfigT = TypeVar("ConfigT", bound=Config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML 1.2 file that holds a mapping. Raises UserError if it is missing or malformed."""
    if not path.is_file():
        raise UserError(f"recipe {path} not found", "give the path of a YAML file, such as configs/demo_cpu.yaml")
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML", " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping", "write `key: value` lines")
    return content


def resolve(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe at `path` as plain data: merged over its chain of bases, then changed by `a.b=value` overrides."""
    seen: list[Path] = []
    layers: list[dict[str, Any]] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in seen:
            raise UserError(f"{path} is its own base", "break the circle of `base:` lines")
        seen.append(current.resolve())
        layer = read_yaml(current)
        base = layer.pop("base", None)
        layers.append(layer)
        following = current.parent / str(base) if base is not None else None
        if following is not None and not following.is_file():
            raise UserError(
                f"base {str(base)!r} of recipe {current} not found", f"give a path relative to {current.parent}"
            )
        current = following
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _merge(merged, layer)
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    return merged


def load_recipe(schema: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """The typed recipe. Raises UserError that names the key, and for an unknown key the nearest known one."""
    return validate(schema, resolve(path, overrides), str(path))


def validate(schema: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Plain data -> schema.   source: where the data came from, for errors."""
    try:
        # As JSON, because pydantic's strict mode then takes lists for tuples and strings for paths, and nothing else.
        text = json.dumps(values, default=str)
    except (TypeError, ValueError) as error:  # YAML can write a list as a key, or a list that holds itself
        raise UserError(f"{source}: not a tree of named values", f"write `key: value` lines ({error})") from None
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key {key!r}", _nearest(schema, first["loc"])) from None
        message = first["msg"].removeprefix("Value error, ")
        # A key that is missing has no value to show, and a whole section would not fit in a line.
        given = "" if isinstance(first["input"], Mapping) else f" (given: {first['input']!r})"
        raise UserError(f"{source}: {key or 'recipe'}", f"{message[0].lower()}{message[1:]}{given}") from None


def dump(config: Config) -> str:
    """The resolved recipe as YAML, which `load_recipe` reads back to an equal object."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keep the order of the fields
    yaml.dump(config.model_dump(mode="json"), text)
    return text.getvalue()


def _merge(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {text!r}", "write it as key=value, such as optimizer.lr=1e-4")
    try:
        parsed: Any = YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise UserError(f"override {text!r}", f"the value is not valid YAML: {' '.join(str(error).split())}") from error
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _nearest(schema: type[Config], location: Sequence[str | int]) -> str:
    """The remedy for an unknown key at `location`: names the nearest key of that section, else of any section."""
    *parents, wrong = (part for part in location if isinstance(part, str))  # numbers are places in a list
    siblings = {path[-1]: path for path in _paths(schema) if list(path[:-1]) == parents}
    everywhere = {path[-1]: path for path in _paths(schema)}
    for names in (siblings, everywhere):
        match = difflib.get_close_matches(wrong, names, n=1)
        if match:
            return f"did you mean {'.'.join(names[match[0]])!r}?"
    return f"known here are {', '.join(sorted(siblings))}"


def _paths(schema: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in schema.model_fields.items():
        yield (*prefix, name)
        for section in _sections(field.annotation):
            yield from _paths(section, (*prefix, name))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation such as `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
