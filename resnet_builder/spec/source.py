"""Where the values of a spec come from: sources, places in them, and trees of both."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from resnet_builder.errors import Problem, SpecPath, dotted

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Source:
    """A file, a command-line argument, or a mapping.

    Attributes:
        name: What messages call it.
        text: What it says; empty for a mapping.
        path: Of a file.
        has_lines: Whether messages give lines and columns, as they do for files.
    """

    name: str
    text: str = ""
    path: Path | None = None
    has_lines: bool = True
    lines: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(self.text.split("\n")))

    def place(self, line: int, column: int) -> "Place":
        """Return the place at a line and a column, counted from 0."""
        return Place(self, line + 1, column + 1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a source something stands; a mapping has no lines.

    Attributes:
        source: What it stands in.
        line: Counted from 1.
        column: Counted from 1, in characters.
    """

    source: Source
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"

    def problem(
        self,
        code: str,
        message: str,
        *,
        path: SpecPath = (),
        allowed: Iterable[str] = (),
        suggestion: str | None = None,
    ) -> Problem:
        """Make the problem that something here is wrong."""
        return Problem(
            code,
            dotted(path),
            message,
            file=self.source.name,
            line=self.line if self.source.has_lines else None,
            col=self.column,
            snippet=None if self.line is None else self.source.lines[self.line - 1],
            allowed=tuple(allowed),
            suggestion=suggestion,
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands.

    Attributes:
        value: A scalar, or the nodes of a mapping or a list.
        place: Where the value begins.
        key_place: Where its key begins, if it is a mapping's.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    place: Place
    key_place: Place | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A source as it was read.

    Attributes:
        source: What was read.
        root: Its values; what could not be understood is left out, or read as probably meant.
        problems: What is wrong with it, though it could be read on.
    """

    source: Source
    root: Node
    problems: tuple[Problem, ...] = ()
