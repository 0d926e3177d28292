"""Plain Python data as trees of values, and back."""

from collections.abc import Mapping
from typing import Any

from resnet_builder.errors import SpecError, SpecPath
from resnet_builder.spec.source import Document, Node, Place, Scalar, Source
from resnet_builder.spec.tree import (
    HALF_PAIR,
    INTEGERS,
    MAX_DEPTH,
    MAX_KEY,
    MAX_NODES,
    MAX_SCALAR,
    has_surrogates,
)

MAPPING = Source("<mapping>", has_lines=False)


def node_from_mapping(mapping: Mapping[str, object]) -> Document:
    """Take plain data, as if it had been read.

    Raises:
        SpecError: There is something in it that YAML has no word for, or too much of it.
    """
    return Document(MAPPING, _Taker().take(mapping, ()))


class _Taker:
    """Takes plain data into nodes, counting them."""

    def __init__(self) -> None:
        self.place = Place(MAPPING)
        self.nodes = 0

    def take(self, value: object, path: SpecPath) -> Node:
        """Take one value and all inside it.

        Raises:
            SpecError: See :func:`node_from_mapping`.
        """
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self._error("limit", f"more than {MAX_NODES} values", path)
        if isinstance(value, Mapping | list | tuple):
            if len(path) == MAX_DEPTH:
                raise self._error("limit", f"nested deeper than {MAX_DEPTH}", path)
            return Node(self._collection(value, path), self.place)
        return Node(self._scalar(value, path), self.place)

    def _collection(
        self, value: Mapping[Any, object] | list[object] | tuple[object, ...], path: SpecPath
    ) -> dict[str, Node] | list[Node]:
        if not isinstance(value, Mapping):
            return [self.take(item, (*path, index)) for index, item in enumerate(value)]
        entries = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise self._error("wrong-type", f"a key must be text, not {key!r}", path)
            node = self.take(item, (*path, key))
            entries[self._text(key, path, MAX_KEY)] = Node(node.value, node.place, self.place)
        return entries

    def _scalar(self, value: object, path: SpecPath) -> Scalar:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if value not in INTEGERS:
                raise self._error("limit", "whole numbers have at most 64 bits", path)
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return self._text(value, path, MAX_SCALAR)
        raise self._error("wrong-type", f"must be plain data, not {type(value).__name__}", path)

    def _text(self, value: str, path: SpecPath, most: int) -> str:
        if len(value) > most:
            raise self._error("limit", f"{len(value)} characters are more than {most}", path)
        if has_surrogates(value):
            raise self._error("yaml-syntax", HALF_PAIR, path)
        return str(value)

    def _error(self, code: str, message: str, path: SpecPath) -> SpecError:
        return SpecError([self.place.problem(code, message, path=path)])


def plain(node: Node) -> Any:
    """Return a tree's values as plain data."""
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value
