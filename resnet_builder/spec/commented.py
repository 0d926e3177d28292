"""Specs as people write them: sections in lines of their own, parts in one, and comments."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from resnet_builder.spec.dump import dump_value

_WIDTH = 100


def commented_spec(
    values: Mapping[str, Any],
    *,
    header: Iterable[str] = (),
    beside: Mapping[str, str] | None = None,
    footer: Iterable[str] = (),
) -> str:
    """Write a spec with comments.

    Args:
        values: The spec, as plain data.
        header: Lines of the comment before it.
        beside: What is said of a section's key: beside it, or above if the line would be too long.
        footer: Lines of the comment behind it.
    """
    lines = [
        *map(_comment, header),
        *_lines(values, beside or {}),
        *map(_comment, footer),
    ]
    return "".join(f"{line}\n" for line in lines)


def _lines(values: Mapping[str, Any], beside: Mapping[str, str], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        comment = _comment(beside[key]) if beside.get(key) else ""
        line = f"{indent}{key}: {dump_value(value)}"
        inside: list[str] = []
        if isinstance(value, Mapping) and (not indent or len(line) > _WIDTH):
            inside = list(_lines(value, {} if indent else beside, f"{indent}  "))
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inside = [f"{indent}  - {dump_value(item)}" for item in value]
        if inside:
            line = f"{indent}{key}:"
        if comment and len(f"{line} {comment}") > _WIDTH:
            yield f"{indent}{comment}"
            comment = ""
        yield f"{line} {comment}".rstrip()
        yield from inside


def _comment(text: str) -> str:
    return f"# {text}".rstrip()
