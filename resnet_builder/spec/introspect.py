"""Introspection of the schema: kinds and ranges of values in words, descriptions, places of keys.

It reads the JSON Schema that pydantic makes of the models.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from resnet_builder.spec.schema import Spec

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with an empty schema for types that JSON has no word for."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
        return {}


@cache
def json_schema_of(model: type[BaseModel]) -> Schema:
    """JSON Schema that pydantic makes of a model."""
    return model.model_json_schema(schema_generator=_Generator)


def alternatives(schema: Schema, definitions: Mapping[str, Schema]) -> tuple[Schema, ...]:
    """Schemas of the kinds of value that a schema admits: references followed, null left out."""
    if "$ref" in schema:
        return alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    members = schema.get("anyOf") or schema.get("oneOf")
    if members:
        return tuple(found for one in members for found in alternatives(one, definitions))
    return () if schema.get("type") == "null" else (schema,)


def choices(schema: Schema) -> tuple[object, ...]:
    """Values of a ``Literal``."""
    return (schema["const"],) if "const" in schema else tuple(schema.get("enum", ()))


def is_part(schema: Schema) -> bool:
    """Tell whether values are named by their ``type``, as parts are."""
    return "type" in schema.get("properties", ())


_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
}


def kinds(admitted: Sequence[Schema]) -> str:
    """Kinds of value that may stand somewhere, in words: ``auto or a whole number``."""
    is_number = any(schema.get("type") == "number" for schema in admitted)
    words = []
    for schema in admitted:
        if named := choices(schema):
            words.append(" or ".join(f"`{choice}`" for choice in named))
        elif is_part(schema):
            words.append("a name, or a mapping with `type`")
        elif "type" in schema and not (is_number and schema["type"] == "integer"):
            words.append(_list_of(schema) or _KINDS[schema["type"]])
    return " or ".join(dict.fromkeys(words))


def _list_of(schema: Schema) -> str:
    """Name a list of so many numbers, as ``[height, width]``; nothing for other schemas."""
    items = schema.get("prefixItems", ())
    are_numbers = all(one.get("type") in {"integer", "number"} for one in items)
    return f"a list of {len(items)} numbers" if items and are_numbers else ""


def ranges(admitted: Sequence[Schema]) -> tuple[str, ...]:
    """Values that may stand somewhere, in words, as far as they are limited."""
    found: list[str] = []
    is_mixed = {"integer", "number"} <= {schema.get("type") for schema in admitted}
    words = {"integer": "a whole number, ", "number": "or a fraction, "} if is_mixed else {}
    for schema in admitted:
        found += map(str, choices(schema))
        if limits := _interval(schema, "minimum", "maximum"):
            found.append(words.get(schema.get("type", ""), "") + limits)
        if "prefixItems" not in schema:
            found.append(_interval(schema, "minItems", "maxItems", "items"))
        found.append(_interval(schema, "minLength", "maxLength", "characters"))
    return tuple(text for text in found if text)


def _interval(schema: Schema, least: str, most: str, unit: str = "") -> str:
    """Limits in words: ``1 to 16384``, ``more than 0``, ``1 to 16 items``."""
    if least in schema and most in schema:
        text = f"{_number(schema[least])} to {_number(schema[most])}"
    else:
        bounds = (
            ("at least", least),
            ("more than", f"exclusive{least.capitalize()}"),
            ("at most", most),
            ("less than", f"exclusive{most.capitalize()}"),
        )
        text = " and ".join(f"{word} {_number(schema[k])}" for word, k in bounds if k in schema)
    unit = unit.removesuffix("s") if text.endswith(" 1") else unit
    return f"{text} {unit}".rstrip() if text else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def places() -> Iterator[tuple[str, str, tuple[Schema, ...]]]:
    """Places of a spec, as ``model.stages[].stride``, their keys, and schemas of their values.

    Options of registered parts are left out.
    """
    root = json_schema_of(Spec)

    def below(schema: Schema, place: str) -> Iterator[tuple[str, str, tuple[Schema, ...]]]:
        for one in alternatives(schema, root["$defs"]):
            for key, value in one.get("properties", {}).items():
                home = f"{place}.{key}" if place else key
                yield home, key, _items(alternatives(value, root["$defs"]), root["$defs"])
                yield from below(value, home)
            if "items" in one:
                yield from below(one["items"], f"{place}[]")

    return below(root, "")


def _items(admitted: tuple[Schema, ...], definitions: Mapping[str, Schema]) -> tuple[Schema, ...]:
    """Schemas of values, with those of a list's items beside the list's own."""
    inside = (alternatives(one["items"], definitions) for one in admitted if "items" in one)
    return (*admitted, *(found for items in inside for found in items))


def documented(part: Any) -> tuple[str, dict[str, str]]:
    """First paragraph of a part's docstring, and its descriptions of arguments."""
    text = inspect.cleandoc(part.__doc__ or "")
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M)
    return first_paragraph(text), {name: _one_line(said) for name, said in entries}


def first_paragraph(text: str) -> str:
    """First paragraph of a description, as one line of Markdown."""
    return _one_line(text.partition("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
