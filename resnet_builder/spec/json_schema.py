"""JSON Schema of spec files, for editors: pydantic's schema of a spec, and the registered parts.

Two things change in pydantic's schema. Whatever a file below could supply may be left out, and null
takes away what is below; a part's place admits its name alone, a mapping with ``type``, or options
of the part below.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from resnet_builder.registry import Registry
from resnet_builder.spec.compose import OWN
from resnet_builder.spec.diagnostics import (
    Schema,
    alternatives,
    choices,
    is_part,
    json_schema_of,
    kinds,
    ranges,
)
from resnet_builder.spec.schema import SpecFile
from resnet_builder.spec.section import DEFAULT_TYPE

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_NULL: Schema = {"type": "null"}


def json_schema_text(registries: Mapping[str, Registry[Any]]) -> str:
    """JSON text of :func:`json_schema`; the same parts give the same bytes."""
    return json.dumps(json_schema(registries), indent=2, ensure_ascii=False, default=str) + "\n"


def json_schema(registries: Mapping[str, Registry[Any]]) -> Schema:
    """JSON Schema of every file that could be a spec, or a file that one extends.

    Rules between several values are left to ``validate``.

    Args:
        registries: Registries of parts, by the keys of a spec that name the parts.
    """
    writer = _Writer(registries)
    root = writer.section(json_schema_of(SpecFile), is_whole=False)
    return {
        "$schema": DIALECT,
        "title": "A spec of resnet-builder",
        **root,
        "$defs": dict(sorted(writer.definitions.items())),
    }


@dataclass(frozen=True, slots=True)
class _Variant:
    """A part that can stand in some place.

    Attributes:
        name: Name of the part.
        schema: Schema of its options.
        what: Description of the part.
        notes: Descriptions of its options, where the schema has none.
    """

    name: str
    schema: Schema
    what: str
    notes: dict[str, str]

    @property
    def options(self) -> dict[str, Schema]:
        """Schemas of its options, by name."""
        return {k: v for k, v in self.schema.get("properties", {}).items() if k != "type"}

    @property
    def required(self) -> list[str]:
        """Options without a default."""
        return [key for key in self.schema.get("required", ()) if key != "type"]


class _Writer:
    """Writes schemas; those of parts, which stand in several places, into ``definitions``.

    Whether a value ``is_whole`` decides what it may leave out: lists, parts with their ``type``
    and what is never inherited replace what lies below, so nothing else completes them.
    """

    def __init__(self, registries: Mapping[str, Registry[Any]]) -> None:
        self.registries = registries
        self.definitions: dict[str, Schema] = {}
        self._known: dict[str, Schema] = dict(json_schema_of(SpecFile)["$defs"])

    def section(self, schema: Schema, *, is_whole: bool) -> Schema:
        """Schema of a mapping of a section's keys."""
        required = schema.get("required", [])
        properties = {
            key: self._value(
                key,
                value,
                is_whole=is_whole or key in OWN,
                can_be_null=not is_whole or key not in required,
            )
            for key, value in schema["properties"].items()
        }
        what = _first_paragraph(schema.get("description", ""))
        return _mapping(what, properties, required if is_whole else (), schema)

    def _value(self, key: str, schema: Schema, *, is_whole: bool, can_be_null: bool) -> Schema:
        """Schema of the value of a section's key."""
        found = list(self._choices(key, schema, is_whole=is_whole))
        written = _any_of([*found, *([_NULL] if can_be_null else [])])
        return _described(written, schema, schema.get("description", ""))

    def _choices(self, key: str, schema: Schema, *, is_whole: bool) -> Iterator[Schema]:
        """Schemas of each kind of value that may stand at a key."""
        admitted = alternatives(schema, self._known)
        parts = [one for one in admitted if is_part(one)]
        if parts:
            yield from self._places(key, parts, _default_type(schema), is_whole=is_whole)
        for one in admitted:
            if is_part(one):
                continue
            if "properties" in one:
                if one["title"] == "WeightsSpec":  # a path alone stands for it
                    yield _bare(one["properties"]["path"])
                yield self.section(one, is_whole=is_whole)
            else:
                yield self._bare_value(key, one)

    def _bare_value(self, key: str, schema: Schema) -> Schema:
        """Schema of a scalar or a list."""
        bare = _bare(schema)
        if "items" in schema:
            bare["items"] = _any_of(list(self._choices(key, schema["items"], is_whole=True)))
        if "prefixItems" in schema:
            items = [list(self._choices(key, i, is_whole=True)) for i in schema["prefixItems"]]
            bare["prefixItems"] = [_any_of(item) for item in items]
        return bare

    def _places(
        self, key: str, parts: list[Schema], default: str | None, *, is_whole: bool
    ) -> Iterator[Schema]:
        """Schemas of a part's place: a name, a mapping, or options of the part below."""
        variants = list(self._variants(key, parts))
        if key not in self.definitions:
            self.definitions[key] = self._part(key, variants, default)
        yield {"$ref": f"#/$defs/{key}"}
        if not is_whole and any(variant.options for variant in variants):
            name = f"{key}_options"
            if name not in self.definitions:
                self.definitions[name] = self._options_below(key, variants)
            yield {"$ref": f"#/$defs/{name}"}

    def _variants(self, key: str, parts: list[Schema]) -> Iterator[_Variant]:
        """Parts that can stand in a place: of a registry, or of a closed set."""
        for one in parts:
            if one["title"] == "Part":
                registry = self.registries[key]
                for name in registry.names():
                    schema = json_schema_of(registry.options(name))
                    self._known.update(schema.get("$defs", {}))
                    yield _Variant(name, schema, *_documented(registry.get(name)))
                continue
            what = _first_paragraph(one["description"])
            for choice in choices(one["properties"]["type"]):
                yield _Variant(str(choice), one, what, {})

    def _part(self, key: str, variants: list[_Variant], default: str | None) -> Schema:
        """Schema of parts by themselves; the default may go without ``type``."""
        named = [variant for variant in variants if not variant.required]
        found: list[Schema] = [
            {
                "enum": [variant.name for variant in named],
                "enumDescriptions": [variant.what for variant in named],
            }
        ]
        for variant in variants:
            options = {
                option: self._option(key, option, variant, is_below=False)
                for option in variant.options
            }
            properties = {"type": {"const": variant.name, "description": "Name."}, **options}
            required = [*([] if variant.name == default else ["type"]), *variant.required]
            mapping = _mapping(variant.what, properties, required, variant.schema)
            found.append({"title": variant.name, **mapping})
        return {"anyOf": found if named else found[1:]}

    def _options_below(self, key: str, variants: list[_Variant]) -> Schema:
        """Schema of a mapping without ``type``: options of whatever part is below."""
        found: dict[str, list[Schema]] = {}
        for variant in variants:
            for option in variant.options:
                schemas = found.setdefault(option, [])
                schema = self._option(key, option, variant, is_below=True)
                if schema not in schemas:
                    schemas.append(schema)
        properties = {option: _any_of(schemas) for option, schemas in found.items()}
        exclusive = next((one.schema for one in variants if "not" in one.schema), {})
        what = "Options of the part that a file below names."
        return {"title": "options", **_mapping(what, properties, (), exclusive)}

    def _option(self, key: str, option: str, variant: _Variant, *, is_below: bool) -> Schema:
        """Schema of a part's option; of one below, null takes it away."""
        schema = variant.options[option]
        is_registered = "description" not in schema
        inner = key if is_registered else option
        found = list(self._choices(inner, schema, is_whole=is_registered or not is_below))
        can_be_null = is_below or _NULL in schema.get("anyOf", ()) or not is_registered
        if can_be_null and (is_below or option not in variant.required):
            found.append(_NULL)
        what = schema.get("description") or variant.notes.get(option) or self._in_words(schema)
        return _described(_any_of(found), {} if is_below else schema, what)

    def _in_words(self, schema: Schema) -> str:
        """Description of an option that its part's docstring leaves out."""
        admitted = alternatives(schema, self._known)
        what = kinds(admitted) or "any value"
        limits = [] if any(choices(one) for one in admitted) else ranges(admitted)
        return ", ".join([what[0].upper() + what[1:], *limits]) + "."


def _default_type(schema: Schema) -> str | None:
    """Part that a mapping without ``type`` means in a place."""
    members = [schema, *schema.get("anyOf", ())]
    return next((one[DEFAULT_TYPE] for one in members if DEFAULT_TYPE in one), None)


def _documented(part: Any) -> tuple[str, dict[str, str]]:
    """First paragraph of a docstring, and its descriptions of arguments."""
    text = inspect.cleandoc(part.__doc__ or "")
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M)
    return _first_paragraph(text), {name: _one_line(said) for name, said in entries}


def _first_paragraph(text: str) -> str:
    return _one_line(text.partition("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _mapping(
    what: str, properties: dict[str, Schema], required: Iterable[str], source: Schema
) -> Schema:
    schema: Schema = {"description": what, "type": "object", "properties": properties}
    if needed := list(required):
        schema["required"] = needed
    if "not" in source:  # of lengths in several units, only one is given
        schema["not"] = source["not"]
    return {**schema, "additionalProperties": False}


def _described(schema: Schema, source: Schema, what: str) -> Schema:
    """Add a description and, of a source with one, the default."""
    described = {**schema, "description": what}
    if source.get("default") is not None:
        described["default"] = source["default"]
    return described


def _any_of(found: list[Schema]) -> Schema:
    first = found[0]
    if len(found) == 1:
        return first
    if found[1:] == [_NULL] and isinstance(first.get("type"), str) and not choices(first):
        return {**first, "type": [first["type"], "null"]}
    return {"anyOf": found}


def _bare(schema: Schema) -> Schema:
    """A schema without its words and its default."""
    words = {"title", "description", "default", DEFAULT_TYPE}
    return {key: value for key, value in schema.items() if key not in words}
