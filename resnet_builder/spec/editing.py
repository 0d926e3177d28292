"""Editing a spec's text by the places of its values, so that all else stays as it is."""

import re

import yaml

BYTE_ORDER_MARK = "\ufeff"

_LINE_END = re.compile(r"\r\n|\r|\n")


def compose(text: str) -> yaml.MappingNode:
    """Return the places of a spec's values.

    Args:
        text: A spec that was read without problems, so nested no deeper than is allowed.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)  # a tree of places; nothing is constructed
    assert isinstance(root, yaml.MappingNode), "a spec is a mapping"
    return root


def entries(node: yaml.MappingNode) -> dict[str, yaml.Node]:
    """Return the values of a mapping, by key."""
    return {key.value: value for key, value in node.value}


def put(text: str, node: yaml.Node, value: str) -> str:
    """Write a value in the place of another; in that of none, behind its key's colon."""
    start, end = node.start_mark.index, node.end_mark.index
    return text[:start] + (" " if start == end else "") + value + text[end:]


def line_end(text: str) -> str:
    """Return how the lines of a text end."""
    found = _LINE_END.search(text)
    return found[0] if found else "\n"


def document_end(text: str) -> int:
    """Return where a document's last line ends: before the ``...`` that may follow it."""
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    mark = next(one.start_mark for one in events if isinstance(one, yaml.DocumentEndEvent))
    assert mark is not None, "marks are only left out on request"
    return mark.index
