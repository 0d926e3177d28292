"""Differences between two specs, value by value."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from resnet_builder.errors import SpecPath
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part, Section


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that two specs do not share.

    Attributes:
        path: Where it is in both.
        before: What it is in the first; ``None`` if it is absent there.
        after: What it is in the second, likewise.
    """

    path: SpecPath
    before: Any
    after: Any


def spec_differences(before: Spec, after: Spec) -> list[Difference]:
    """List what differs between two specs, in the order of their keys.

    The same part with other options is told option by option, another part whole; sections and
    parts in lists are told by their index, lists of scalars whole.
    """
    return list(_differences((), before, after))


def _differences(path: SpecPath, before: Any, after: Any) -> Iterator[Difference]:
    if before == after:
        return
    if _same_kind(before, after):
        old, new = _entries(before), _entries(after)
        for key in {**old, **new}:
            yield from _differences((*path, key), old.get(key), new.get(key))
    elif _are_sections(before) and _are_sections(after):
        for index, (one, other) in enumerate(zip_longest(before, after)):
            yield from _differences((*path, index), one, other)
    else:
        yield Difference(path, before, after)


def _same_kind(before: Any, after: Any) -> bool:
    """Tell whether both are the same section, or a part of the same name."""
    is_model = isinstance(before, Section | Part)
    same_name: bool = getattr(before, "type", None) == getattr(after, "type", None)
    return is_model and type(before) is type(after) and same_name


def _entries(value: Section | Part) -> dict[str, Any]:
    if isinstance(value, Part):
        return value.options
    return {key: getattr(value, key) for key in type(value).model_fields}


def _are_sections(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, Section | Part) for item in value)
