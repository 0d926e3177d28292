"""What is printed: results on stdout; errors, notices and progress on stderr."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import click

from resnet_builder.errors import SpecError, Stopped, visible


class Json(Protocol):
    """A record that can be written as JSON."""

    def to_json(self, *, indent: int | None = None) -> str:
        """Write it."""


def show(text: str) -> None:
    """Print a result."""
    click.echo(text)


def show_json(record: Json) -> None:
    """Print a result for programs: one JSON document."""
    click.echo(record.to_json(indent=2))


def note(text: str) -> None:
    """Print what the user should know, beside results; if nobody listens, so be it."""
    with suppress(OSError):
        click.echo(escaped(text), err=True)


def show_error(error: BaseException) -> None:
    """Print why the program ends; a spec's problems have their own form, and a stop is no error."""
    is_plain = isinstance(error, SpecError | Stopped)
    note(str(error) if is_plain else f"error: {error}")


def escaped(text: str) -> str:
    """Escape what a terminal would act on, but not the ends of lines."""
    return "\n".join(visible(line) for line in text.split("\n"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Set out rows in columns.

    Args:
        header: The columns' names.
        rows: A text for each column.
        left: Columns that are aligned to the left; the others, which hold numbers, to the right.
    """
    lines = [list(header), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def examples(*lines: str) -> str:
    """Write the examples below a command's help; click leaves their lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def percent(fraction: float | None) -> str:
    """Write an accuracy as papers do; nothing for what is not known."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def points(difference: float | None) -> str:
    """Write a difference of accuracies in percentage points; nothing for what is not known."""
    return "" if difference is None else f"{100 * difference:+.2f}"
