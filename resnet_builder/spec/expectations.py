"""Writing counts into the text of a spec: the numbers change, and all else stays as it is."""

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from resnet_builder.errors import UsageError
from resnet_builder.spec.editing import (
    BYTE_ORDER_MARK,
    compose,
    document_end,
    entries,
    line_end,
    put,
)
from resnet_builder.spec.plain import plain
from resnet_builder.spec.reading import checked
from resnet_builder.spec.tree import parse_yaml

EXPECT = "expect"


@dataclass(frozen=True, slots=True)
class Change:
    """A number that was written anew.

    Attributes:
        key: Of ``expect``.
        before: What stood there, if anything did.
        after: What stands there now.
    """

    key: str
    before: int | None
    after: int


def expected(text: str, counts: Mapping[str, int]) -> tuple[str, tuple[Change, ...]]:
    """Let a spec expect what its network counts to.

    Of a section that is there, the keys that it has get their counts; one that is empty or absent
    gets all of them, in a line at the end if there is none.

    Args:
        text: The spec, without problems other than what it expects. Comments, order, spaces and
            line ends are kept.
        counts: By keys of ``expect``.

    Returns:
        The new text, and what is different in it.

    Raises:
        UsageError: The text is laid out so that the section cannot be added to it.
    """
    old = _read(text)
    given = old.get(EXPECT) or {}
    wanted = {key: counts[key] for key in given or counts}
    changes = tuple(
        Change(key, given.get(key), count)
        for key, count in wanted.items()
        if given.get(key) != count
    )
    if not changes:
        return text, ()
    new = _replaced(text, wanted)
    if _read(new) != {**old, EXPECT: wanted}:
        raise UsageError(f"this file is laid out so that only you can add `{_section(wanted)}`")
    return new, changes


def _read(text: str) -> dict[str, dict[str, int]]:
    source = checked(text.removeprefix(BYTE_ORDER_MARK), "<text>")
    values: dict[str, dict[str, int]] = plain(parse_yaml(source).root)
    return values


def _replaced(text: str, counts: Mapping[str, int]) -> str:
    root = compose(text)
    section = entries(root).get(EXPECT)
    if section is None:
        return _appended(text, root, _section(counts))
    if not isinstance(section, yaml.MappingNode) or not section.value:
        return put(text, section, _section(counts).removeprefix(f"{EXPECT}: "))
    numbers = entries(section)
    for key in sorted(counts, key=lambda key: numbers[key].start_mark.index, reverse=True):
        text = put(text, numbers[key], str(counts[key]))
    return text


def _appended(text: str, root: yaml.MappingNode, section: str) -> str:
    """Add a section behind all others: on a line of its own, unless the spec is in brackets."""
    if root.flow_style:
        last = root.value[-1][1].end_mark.index
        return f"{text[:last]}, {section}{text[last:]}"
    end = document_end(text)
    line = " " * root.start_mark.column + section
    is_line_whole = text[:end].endswith(("\n", "\r"))
    line = line + line_end(text) if is_line_whole else line_end(text) + line
    return text[:end] + line + text[end:]


def _section(counts: Mapping[str, int]) -> str:
    return f"{EXPECT}: {{{', '.join(f'{key}: {count}' for key, count in counts.items())}}}"
