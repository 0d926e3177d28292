"""Where in its sources a spec's values stand."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from resnet_builder.errors import Problem, SpecPath
from resnet_builder.spec.source import Node, Place, Source
from resnet_builder.spec.structure import short_key

At = Literal["value", "key", "name"]


class Positions:
    """Finds the places of values by their paths.

    Args:
        root: The spec's values.
        sources: What they came from, in the order that problems are shown in.
    """

    def __init__(self, root: Node, sources: Iterable[Source] = ()) -> None:
        self._root = root
        self._ranks: dict[tuple[str, str | None], int] = {}
        for rank, source in enumerate(sources):
            argument = None if source.has_lines else source.text
            self._ranks.setdefault((source.name, argument), rank)

    def place(self, path: SpecPath, *, at: At = "value") -> Place:
        """Return the place of a value; of what is not written, the key of what it would be in.

        Args:
            path: The value's path.
            at: The value itself, its key, or, of a part or a file of weights, its name.
        """
        node, rest = self._nearest(path)
        if at == "key" or rest:
            return node.key_place or node.place
        name = node.value.get(short_key(path) or "type") if isinstance(node.value, dict) else None
        return node.place if at == "value" or name is None else name.place

    def problem(
        self,
        code: str,
        path: SpecPath,
        message: str,
        *,
        at: At = "value",
        allowed: Iterable[str] = (),
        suggestion: str | None = None,
    ) -> Problem:
        """Make the problem that a value is wrong.

        Args:
            code: One of :data:`resnet_builder.errors.CODES`.
            path: The value's path, of which as much is followed as is written.
            message: What is wrong.
            at: What to point at, as in :meth:`place`.
            allowed: What could stand there instead.
            suggestion: What was probably meant.
        """
        place = self.place(path, at=at)
        return place.problem(code, message, path=path, allowed=allowed, suggestion=suggestion)

    def base_dir(self, path: SpecPath) -> Path:
        """Return what a relative path at ``path`` is relative to.

        That is the folder of the file it is written in, or the working directory.
        """
        file = self._nearest(path)[0].place.source.path
        return Path.cwd() if file is None else file.parent

    def ordered(self, problems: Iterable[Problem]) -> tuple[Problem, ...]:
        """Sort problems as their places follow each other: the spec's first, then other files'."""
        return tuple(sorted(problems, key=self._rank))

    def _rank(self, problem: Problem) -> tuple[int, int, int]:
        argument = None if problem.line is not None else problem.snippet or ""
        rank = self._ranks.get((problem.file, argument), len(self._ranks))
        return rank, problem.line or 0, problem.col or 0

    def _nearest(self, path: SpecPath) -> tuple[Node, SpecPath]:
        """Return the last node that is written on the way down, and the rest of the way."""
        node = self._root
        for depth, step in enumerate(path):
            child = _child(node, step)
            if child is None:
                return node, path[depth:]
            node = child
        return node, ()


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(node.value, dict) and isinstance(step, str):
        return node.value.get(step)
    if isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None
