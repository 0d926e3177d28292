"""A JSON Schema of spec files, for editors: off the sections' models and the registered parts.

It is of draft 7, which both yaml-language-server and the JetBrains editors read.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS
from resnet_builder.parts import MODEL_PARTS
from resnet_builder.registry import Registry
from resnet_builder.spec.dump import plain_data
from resnet_builder.spec.layers import OWN
from resnet_builder.spec.schema import SpecFile
from resnet_builder.spec.section import Part
from resnet_builder.spec.structure import Member, field_members
from resnet_builder.spec.words import kinds, ranges

Schema = dict[str, Any]

DIALECT = "http://json-schema.org/draft-07/schema#"

REGISTRIES: dict[str, Registry[Any]] = {
    **MODEL_PARTS,
    "dataset": DATASETS,
    "augment": AUGMENTATIONS,
}
"""The registry behind each key of a spec that names a registered part."""

_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", dict: "object"}

_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "pattern": "pattern",
}

_NULL: Schema = {"type": "null"}


def json_schema_text() -> str:
    """Write the schema as JSON; the same parts give the same bytes."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False, default=str) + "\n"


def json_schema() -> Schema:
    """Describe every file that could be a spec, or a layer of one, with the parts now registered.

    What a layer below could supply may be left out, and null takes away what is below. Rules
    between several values are left to ``validate``.
    """
    writer = _Writer()
    root = writer.section(SpecFile, is_whole=False)
    return {
        "$schema": DIALECT,
        "title": "A spec of resnet-builder",
        **root,
        "definitions": dict(sorted(writer.definitions.items())),
    }


@dataclass(frozen=True, slots=True)
class _Variant:
    """A part that can stand in some place.

    Attributes:
        name: What it is called there.
        what: What it is.
        options: Its options, by name.
        notes: What its docstring says of options.
        units: Options of which only one is given.
        is_registered: Whether its options are those of a signature; else of a section.
    """

    name: str
    what: str
    options: dict[str, FieldInfo]
    notes: dict[str, str]
    units: tuple[str, ...]
    is_registered: bool

    @property
    def required(self) -> list[str]:
        """The options that it cannot do without."""
        return [name for name, option in self.options.items() if option.is_required()]


class _Writer:
    """Writes schemas; those of parts, which stand in several places, into ``definitions``.

    Whether a value ``is_whole`` decides what it may leave out: lists, parts with their ``type``
    and what is never inherited replace what lies below, so nothing else completes them.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def section(self, model: type[BaseModel], *, is_whole: bool) -> Schema:
        """Describe a mapping of a section's keys."""
        properties = {
            key: self._key(key, field, is_whole=is_whole)
            for key, field in model.model_fields.items()
        }
        required = [key for key, field in model.model_fields.items() if field.is_required()]
        what, _ = _documented(model)
        return _mapping(what, properties, required if is_whole else (), units=_units(model))

    def _key(self, key: str, field: FieldInfo, *, is_whole: bool) -> Schema:
        """Describe the value of a section's key; null is as good as none."""
        is_own = key in OWN
        choices = list(self._choices(key, field_members(field), is_whole=is_whole or is_own))
        if not (is_whole and field.is_required()):
            choices.append(_NULL)
        return _described(field.description or "", _any_of(choices), field)

    def _choices(self, key: str, admitted: Sequence[Member], *, is_whole: bool) -> Iterator[Schema]:
        """Describe each kind of value that may stand at a key."""
        parts = [member for member in admitted if member.is_part]
        if parts:
            yield from self._places(key, parts, is_whole=is_whole)
        for member in admitted:
            if not member.is_part:
                yield from self._kind(key, member, is_whole=is_whole)

    def _kind(self, key: str, member: Member, *, is_whole: bool) -> Iterator[Schema]:
        """Describe one kind of value, and the scalar that may stand for it."""
        if member.choices:
            yield _choice(member.choices)
        elif member.is_list:
            yield self._list(key, member)
        elif member.model is not None:
            if member.short_key is not None:
                short = member.model.model_fields[member.short_key]
                yield from self._choices(key, field_members(short), is_whole=True)
            yield self.section(member.model, is_whole=is_whole)
        else:
            kind = _TYPES.get(get_origin(member.kind) or member.kind)  # a plugin may ask for more
            yield {**({} if kind is None else {"type": kind}), **_limits(member)}

    def _list(self, key: str, member: Member) -> Schema:
        """Describe a list: of any length, or of one kind of value in each place."""
        kinds_of_items = [kind for kind in get_args(member.kind) if kind is not Ellipsis]
        items = [
            _any_of(list(self._choices(key, member.item(index), is_whole=True)))
            for index in range(len(kinds_of_items))
        ]
        if get_origin(member.kind) is tuple and Ellipsis not in get_args(member.kind):
            count = len(items)
            fixed = {"additionalItems": False, "minItems": count, "maxItems": count}
            return {"type": "array", "items": items, **fixed}
        return {"type": "array", **({"items": items[0]} if items else {}), **_limits(member)}

    def _places(self, key: str, parts: list[Member], *, is_whole: bool) -> Iterator[Schema]:
        """Describe a part's place: a name, a mapping with ``type``, or options of the one below."""
        variants = list(_variants(key, parts))
        if key not in self.definitions:
            default = _default_name(parts[0])
            self.definitions[key] = self._part(key, variants, default)
        yield {"$ref": f"#/definitions/{key}"}
        if not is_whole and any(variant.options for variant in variants):
            name = f"{key}_options"
            if name not in self.definitions:
                self.definitions[name] = self._options_below(key, variants)
            yield {"$ref": f"#/definitions/{name}"}

    def _part(self, key: str, variants: list[_Variant], default: str | None) -> Schema:
        """Describe parts by themselves; the default may go without ``type``."""
        names = [variant for variant in variants if not variant.required]
        choices: list[Schema] = [
            {
                "enum": [variant.name for variant in names],
                "enumDescriptions": [variant.what for variant in names],
            }
        ]
        for variant in variants:
            name = {"const": variant.name, "description": "The part's name."}
            options = {
                option: self._option(key, option, variant, is_below=False)
                for option in variant.options
            }
            needed = [*([] if variant.name == default else ["type"]), *variant.required]
            properties = {"type": name, **options}
            mapping = _mapping(variant.what, properties, needed, units=variant.units)
            choices.append({"title": variant.name, **mapping})
        return {"anyOf": choices if names else choices[1:]}

    def _options_below(self, key: str, variants: list[_Variant]) -> Schema:
        """Describe a mapping without ``type``, which changes options of whatever part is below."""
        found: dict[str, list[Schema]] = {}
        for variant in variants:
            for option in variant.options:
                schemas = found.setdefault(option, [])
                schema = self._option(key, option, variant, is_below=True)
                if schema not in schemas:
                    schemas.append(schema)
        properties = {option: _any_of(schemas) for option, schemas in found.items()}
        units = next((variant.units for variant in variants if variant.units), ())
        what = "Options of the part that a layer below names."
        return {"title": "options", **_mapping(what, properties, units=units)}

    def _option(self, key: str, option: str, variant: _Variant, *, is_below: bool) -> Schema:
        """Describe an option of a part; of one below, null takes it away."""
        field = variant.options[option]
        if not variant.is_registered:
            return self._key(option, field, is_whole=not is_below)
        admitted = field_members(field)
        choices = list(self._choices(key, admitted, is_whole=True))
        if is_below or type(None) in get_args(field.annotation):
            choices.append(_NULL)
        note = variant.notes.get(option) or _in_words(admitted)
        return _described(note, _any_of(choices), None if is_below else field)


def _variants(key: str, parts: list[Member]) -> Iterator[_Variant]:
    """Yield what can stand in a part's place: of a registry, or of a closed set."""
    for member in parts:
        if member.kind is Part:
            registry = REGISTRIES[key]
            for name in registry.names():
                what, notes = _documented(registry.get(name))
                yield _Variant(name, what, registry.options(name).model_fields, notes, (), True)
            continue
        assert member.model is not None
        what, _ = _documented(member.model)
        fields = {k: f for k, f in member.model.model_fields.items() if k != "type"}
        for name in get_args(member.model.model_fields["type"].annotation):
            yield _Variant(name, what, fields, {}, _units(member.model), False)


def _units(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a section of which only one can be given."""
    return getattr(model, "units", ())


def _default_name(member: Member) -> str | None:
    """Return the part that a mapping without ``type`` means in a place, by the place's rule."""
    [rule] = [limit for limit in member.limits if isinstance(limit, BeforeValidator)]
    meant: dict[str, str] = rule.func({})  # type: ignore[call-arg]  # of the value alone
    return meant.get("type")


def _documented(part: Any) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and what it says of each argument."""
    text = inspect.cleandoc(part.__doc__ or "").replace("``", "`")
    what = " ".join(text.partition("\n\n")[0].split())
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M)
    return what, {name: " ".join(said.split()) for name, said in entries}


def _in_words(admitted: Sequence[Member]) -> str:
    """Describe an option that its part's docstring leaves out."""
    what = kinds(admitted)
    limits = [] if any(member.choices for member in admitted) else ranges(admitted)
    return ", ".join([what[0].upper() + what[1:], *limits]) + "."


def _mapping(
    what: str,
    properties: dict[str, Schema],
    required: Iterable[str] = (),
    *,
    units: tuple[str, ...] = (),
) -> Schema:
    schema: Schema = {"description": what, "type": "object", "properties": properties}
    if needed := list(required):
        schema["required"] = needed
    if units:
        schema["not"] = {"anyOf": [_both(*pair) for pair in combinations(units, 2)]}
    return {**schema, "additionalProperties": False}


def _both(*keys: str) -> Schema:
    """Describe mappings in which all of these keys are given, as numbers."""
    given = {key: {"type": "number"} for key in keys}
    return {"type": "object", "properties": given, "required": list(keys)}


def _described(what: str, schema: Schema, field: FieldInfo | None) -> Schema:
    """Add to a value's schema what it is and, of a field, its default."""
    described = {**schema, "description": what}
    if field is not None and not field.is_required() and field.default is not None:
        described["default"] = plain_data(field.default)
    return described


def _any_of(choices: list[Schema]) -> Schema:
    """Admit any of several kinds of value; draft 7 ignores whatever stands beside a reference."""
    first = choices[0]
    if len(choices) == 1 and "$ref" not in first:
        return first
    if choices[1:] == [_NULL] and isinstance(first.get("type"), str):
        return {**first, "type": [first["type"], "null"]}
    return {"anyOf": choices}


def _choice(values: Sequence[object]) -> Schema:
    return {"const": values[0]} if len(values) == 1 else {"enum": list(values)}


def _limits(member: Member) -> Schema:
    """Return a member's constraints, as JSON Schema calls them."""
    unit = "Items" if member.is_list else "Length"
    names = {**_LIMITS, "min_length": f"min{unit}", "max_length": f"max{unit}"}
    return {
        ours: value
        for limit in member.limits
        for name, ours in names.items()
        if (value := getattr(limit, name, None)) is not None
    }
