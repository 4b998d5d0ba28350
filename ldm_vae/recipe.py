"""Recipes: a YAML base plus overrides -> a typed, validated, frozen configuration.

A recipe file holds what differs from its `base:` (a path relative to the file). YAML 1.2 is read, so
that `1e-5` is a number and `no` is a word. Every part declares its own `Config` beside its code.
"""

from __future__ import annotations

import difflib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from ldm_vae.documents import MAX_DEPTH, parse_yaml, read_yaml
from ldm_vae.errors import UserError


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, no silent conversion of types.

    The docstring under a field says what it means and in which unit; `python -m train --fields` prints it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants", use_attribute_docstrings=True
    )

    def __eq__(self, other: object) -> bool:
        """Compares content, because the class that read a section may be made for one recipe."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()


ConfigT = TypeVar("ConfigT", bound=Config)
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Kind:
    """One kind of a part. It is imported when it is first asked for.

    module: where its classes are.
    config: name of the class that configures it.
    part: name of the class that is built from that.
    measures: name of the module whose class `Measures` says what is measured of it; empty: what is of a codec.
    """

    module: str
    config: str
    part: str
    measures: str = ""


@dataclass(frozen=True, eq=False)
class Kinds:
    """The kinds that a part comes in, by the word that a recipe names them with.

    It stands in the annotation of a field, `Annotated[BottleneckConfig, SerializeAsAny(), BOTTLENECKS]`: the key `kind`
    of that section then says which class reads the rest.

    part: what it is a kind of, for errors.
    default: the kind of a section that names none.
    base: what every section has beside the fields of its kind; None for nothing.
    """

    part: str
    default: str
    table: dict[str, Kind]
    base: type[Config] | None = None

    def config(self, kind: object) -> type[Config]:
        """The class that configures a kind. Raises UserError for a word that is not in the table."""
        return _combined(getattr(import_module(self._known(kind).module), self._known(kind).config), self.base)

    def part_of(self, config: Config) -> type[Any]:
        """The class of the part that a configuration describes."""
        known = self._known(getattr(config, "kind", None))
        part: type[Any] = getattr(import_module(known.module), known.part)
        return part

    def measures_of(self, config: Config) -> type[Any] | None:
        """The class that says what is measured of a part; None for a codec."""
        known = self._known(getattr(config, "kind", None))
        measures: type[Any] | None = import_module(known.measures).Measures if known.measures else None
        return measures

    def with_base(self, base: type[Config]) -> Kinds:
        """The same kinds, in sections that also have the fields of `base`."""
        return replace(self, base=base)

    def _known(self, kind: object) -> Kind:
        if not isinstance(kind, str) or kind not in self.table:
            raise UserError(f"{self.part} of kind {kind!r}", f"known are {', '.join(sorted(self.table))}")
        return self.table[kind]


@cache
def _combined(config: type[Config], base: type[Config] | None) -> type[Config]:
    if base is None:
        return config
    return create_model(config.__name__, __base__=(config, base), __module__=__name__, __doc__=base.__doc__)


def resolve(path: Path, overrides: Sequence[str] = (), schema: type[Config] = Config) -> dict[str, Any]:
    """The recipe at `path` as plain data: merged over its chain of bases, then changed by `a.b=value` overrides.

    schema: says which sections come in kinds. Such a section is replaced where another kind is named, not merged.
    """
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
        if following is not None and not _is_file(following):
            raise UserError(
                f"base {_shortened(str(base))} of recipe {current} not found",
                f"give a path relative to {current.parent}",
            )
        current = following
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _merge(merged, layer, schema)
    for override in overrides:
        merged = _merge(merged, _parse_override(override), schema)
    return merged


def changes(path: Path, overrides: Sequence[str] = (), schema: type[Config] = Config) -> dict[str, Any]:
    """What the recipe at `path` and the overrides change of its base, as a recipe: `base`, then the fields that differ.

    A recipe without a base is returned whole.
    """
    given = resolve(path, overrides, schema)
    base = read_yaml(path).get("base")
    if base is None:
        return given
    started_from = path.parent / str(base)
    return {"base": str(started_from), **_differing(resolve(started_from, (), schema), given)}


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in now.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and old.get("kind") == value.get("kind"):
            if inside := _differing(old, value):
                found[key] = inside
        elif key not in before or old != value:
            found[key] = value
    return found


def load_recipe(schema: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """The typed recipe. Raises UserError that names the key, and for an unknown key the nearest known one."""
    return validate(schema, resolve(path, overrides, schema), str(path))


def validate(schema: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Plain data -> schema.

    source: where the data came from, for errors.
    """
    try:
        # As JSON, because pydantic's strict mode then takes lists for tuples and strings for paths, and nothing else.
        text = json.dumps(values, default=str)
    except (TypeError, ValueError) as error:  # YAML can write a list as a key, or a list that holds itself
        raise UserError(f"{source}: not a tree of named values", f"write `key: value` lines ({error})") from None
    schema = _specialise(schema, values, source)
    try:
        return from_json(schema, text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key {key!r}", nearest(schema, first["loc"])) from None
        message = first["msg"].removeprefix("Value error, ")
        # A key that is missing has no value to show, and a whole section would not fit in a line.
        given = "" if isinstance(first["input"], Mapping) else f" (given: {_shortened(first['input'])})"
        raise UserError(f"{source}: {key or 'recipe'}", f"{message[0].lower()}{message[1:]}{given}") from None


def from_json(schema: type[ConfigT], text: str) -> ConfigT:
    """The configuration in a JSON text. Raises ValueError.

    Names that are not UTF-8 are in it as Python reads them, such as "\\udcff" for the byte 0xff. Pydantic refuses that
    in JSON, and takes it in Python's strings.
    """
    if "\\ud" in text.lower():
        return schema.model_validate(_lists_as_tuples(json.loads(text)))
    return schema.model_validate_json(text)


def _lists_as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_as_tuples(item) for key, item in value.items()}
    return tuple(map(_lists_as_tuples, value)) if isinstance(value, list) else value


def _shortened(value: object, longest: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def dump(config: Config) -> str:
    """The resolved recipe as YAML, which `load_recipe` reads back to an equal object."""
    return as_yaml(config.model_dump(mode="json"))


def as_yaml(values: Mapping[str, Any], *, short: bool = False) -> str:
    """Plain data as YAML, in its own order.

    short: writes a list, and a section without sections, in one line.
    """
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None if short else False
    yaml.width = sys.maxsize if short else 80
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keep the order of the fields
    yaml.dump(dict(values), text)
    return text.getvalue()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is longer than any disk's names
        return False


def _merge(base: dict[str, Any], change: Mapping[str, Any], schema: type[BaseModel] | None) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if not isinstance(old, dict) or not isinstance(value, Mapping):
            merged[key] = value
            continue
        field = None if schema is None else schema.model_fields.get(key)
        kinds = None if field is None else _kinds(field)
        section = None if field is None else next(_sections(field.annotation), None)
        if kinds is not None:
            kind = old.get("kind", kinds.default)
            if value.get("kind", kind) != kind:
                merged[key] = dict(value)
                continue
            section = (
                kinds.config(kind) if isinstance(kind, str) and kind in kinds.table else None
            )  # an unknown kind is refused later
        merged[key] = _merge(old, value, section)
    return merged


def _specialise(schema: type[ConfigT], values: object, source: str) -> type[ConfigT]:
    """The schema with each section that comes in kinds read by the class of the kind that `values` name."""
    if not isinstance(values, Mapping):
        return schema
    changes: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        given = values.get(name)
        section = next(_sections(field.annotation), None)
        if section is None or not issubclass(section, Config) or not isinstance(given, Mapping):
            continue
        read_by = section
        if (kinds := _kinds(field)) is not None:
            try:
                read_by = kinds.config(given.get("kind", kinds.default))
            except UserError as error:
                raise UserError(f"{source}: {error.what}", error.remedy) from None
        read_by = _specialise(read_by, given, source)
        if read_by is not section:
            changes[name] = (read_by, copy(field))
    return create_model(schema.__name__, __base__=schema, **changes) if changes else schema


def with_all_kinds(schema: type[Config]) -> type[Config]:
    """The schema with each section that comes in kinds as any of them: what a recipe may hold, for documentation."""
    changes: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        section = next(_sections(field.annotation), None)
        if section is None or not issubclass(section, Config):
            continue
        kinds = _kinds(field)
        given = [section] if kinds is None else [kinds.config(kind) for kind in kinds.table]
        possible = [with_all_kinds(config) for config in given]
        if possible != [section]:
            optional = (None,) if type(None) in get_args(field.annotation) else ()
            changes[name] = (Union[(*possible, *optional)], copy(field))  # of a computed list
    return create_model(schema.__name__, __base__=schema, __doc__=schema.__doc__, **changes) if changes else schema


def _kinds(field: FieldInfo) -> Kinds | None:
    return next((mark for mark in field.metadata if isinstance(mark, Kinds)), None)


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(parts := key.split(".")) or len(parts) > MAX_DEPTH:
        raise UserError(f"override {text!r}", "write it as key=value, such as optimizer.lr=1e-4")
    parsed = parse_yaml(value, f"the value of override {text!r}")
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def nearest(schema: type[Config], location: Sequence[str | int]) -> str:
    """The remedy for an unknown key at `location`: names the nearest key of that section, else of any section."""
    *parents, wrong = (part for part in location if isinstance(part, str))  # numbers are places in a list
    siblings = {path[-1]: path for path in _paths(schema) if list(path[:-1]) == parents}
    everywhere = {path[-1]: path for path in _paths(schema)}
    for names in (siblings, everywhere):
        match = difflib.get_close_matches(wrong, names, n=1)
        if match:
            return f"did you mean {'.'.join(names[match[0]])!r}?"
    return f"known here are {', '.join(sorted(siblings or schema.model_fields))}"


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


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree of settings, as pairs of "a.b" and value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
