"""JSON Schema of spec files, for editors: pydantic's schema of a spec, and the registered parts.

Two things change in pydantic's schema. Whatever a file below could supply may be left out, and null
takes away what is below; a part's place admits its name alone, or a mapping, which without ``type``
changes options of the part below.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_builder.registry import Registry
from resnet_builder.spec.compose import OWN
from resnet_builder.spec.introspect import (
    Schema,
    alternatives,
    choices,
    documented,
    first_paragraph,
    is_part,
    json_schema_of,
)
from resnet_builder.spec.schema import SpecFile

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


class _Writer:
    """Writes schemas; those of parts, which stand in several places, into ``definitions``.

    Whether a value ``is_whole`` decides what it may leave out: the items of a list, and what is
    never inherited, replace what lies below, so nothing else completes them.
    """

    def __init__(self, registries: Mapping[str, Registry[Any]]) -> None:
        self.registries = registries
        self.definitions: dict[str, Schema] = {}
        self._known: dict[str, Schema] = dict(json_schema_of(SpecFile)["$defs"])

    def section(self, schema: Schema, *, is_whole: bool) -> Schema:
        """Schema of a mapping of a section's keys."""
        required = schema.get("required", []) if is_whole else []
        properties = {}
        for key, value in schema["properties"].items():
            found = list(self._choices(key, value, is_whole=is_whole or key in OWN))
            found += [] if key in required else [_NULL]
            properties[key] = _described(_any_of(found), value, value.get("description", ""))
        mapping = _mapping(first_paragraph(schema.get("description", "")), properties)
        return {**mapping, "required": required} if required else mapping

    def _choices(self, key: str, schema: Schema, *, is_whole: bool) -> Iterator[Schema]:
        """Schemas of each kind of value that may stand at a key."""
        admitted = alternatives(schema, self._known)
        parts = [one for one in admitted if is_part(one)]
        if parts:
            if key not in self.definitions:
                self._define_parts(key, parts)
            yield {"$ref": f"#/$defs/{key}"}
        for one in admitted:
            if "properties" in one and not is_part(one):
                if one["title"] == "WeightsSpec":  # a path alone stands for it
                    yield _bare(one["properties"]["path"])
                yield self.section(one, is_whole=is_whole)
            elif "properties" not in one:
                bare = _bare(one)
                if "items" in one:
                    bare["items"] = _any_of([*self._choices(key, one["items"], is_whole=True)])
                if "prefixItems" in one:
                    bare["prefixItems"] = [
                        _any_of([*self._choices(key, item, is_whole=True)])
                        for item in one["prefixItems"]
                    ]
                yield bare

    def _define_parts(self, key: str, parts: list[Schema]) -> None:
        """Define the parts that can stand in a place.

        Args:
            key: Key of the place, and name of its definition.
            parts: Pydantic's schemas of the parts; ``Part`` stands for those of a registry.
        """
        self.definitions[key] = {}  # a part can stand inside another
        names: dict[str, str] = {}
        mappings: list[Schema] = []
        for name, schema, what, notes in self._variants(key, parts):
            properties: dict[str, Schema] = {"type": {"const": name, "description": "Name."}}
            for option, value in schema.get("properties", {}).items():
                if option != "type":
                    place = option if "description" in value else key  # of a registered part
                    found = [*self._choices(place, value, is_whole=False), _NULL]
                    said = value.get("description") or notes.get(option, "")
                    properties[option] = _described(_any_of(found), value, said)
            mapping = {"title": name, **_mapping(what, properties)}
            required = [option for option in schema.get("required", ()) if option != "type"]
            if required:
                mapping["dependentRequired"] = {"type": required}
            else:
                names[name] = what
            mappings.append(mapping)
        named = [{"enum": [*names], "enumDescriptions": [*names.values()]}] if names else []
        self.definitions[key] = {"anyOf": [*named, *mappings]}

    def _variants(
        self, key: str, parts: list[Schema]
    ) -> Iterator[tuple[str, Schema, str, dict[str, str]]]:
        """Name, schema, description, and descriptions of options of each part."""
        for one in parts:
            if one["title"] == "Part":
                registry = self.registries[key]
                for name in registry.names():
                    schema = json_schema_of(registry.options(name))
                    self._known.update(schema.get("$defs", {}))
                    yield name, schema, *documented(registry.get(name))
            else:
                what = first_paragraph(one["description"])
                for choice in choices(one["properties"]["type"]):
                    yield str(choice), one, what, {}


def _mapping(what: str, properties: dict[str, Schema]) -> Schema:
    return {
        "description": what,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _described(schema: Schema, source: Schema, what: str) -> Schema:
    """Add a description and a default, where there are any."""
    described = {**schema, "description": what} if what else dict(schema)
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
    words = {"title", "description", "default"}
    return {key: value for key, value in schema.items() if key not in words}
