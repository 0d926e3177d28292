"""Differences between specs, value by value."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from resnet_builder.errors import SpecPath
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part, Section


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that specs do not share.

    Attributes:
        path: Place in all of them.
        values: Value in each spec; ``None`` where it is absent.
    """

    path: SpecPath
    values: tuple[Any, ...]

    @property
    def before(self) -> Any:
        """Value in the first spec."""
        return self.values[0]

    @property
    def after(self) -> Any:
        """Value in the last spec."""
        return self.values[-1]


def spec_differences(*specs: Spec) -> list[Difference]:
    """List what differs between specs, in the order of their keys.

    The same part with other options is told option by option, another part whole; sections and
    parts in lists are told by their index, lists of scalars whole.
    """
    return list(_differences((), specs))


def _differences(path: SpecPath, values: tuple[Any, ...]) -> Iterator[Difference]:
    first, *others = values
    if all(other == first for other in others):
        return
    if all(_same_kind(first, other) for other in others):
        entries = [_entries(value) for value in values]
        for key in dict.fromkeys(key for one in entries for key in one):
            yield from _differences((*path, key), tuple(one.get(key) for one in entries))
    elif all(map(_are_sections, values)):
        for index, items in enumerate(zip_longest(*values)):
            yield from _differences((*path, index), items)
    else:
        yield Difference(path, values)


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
