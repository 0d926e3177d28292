"""Console output: results on stdout; errors and notes on stderr."""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress

import click

from resnet_builder.errors import SpecError, Stopped, visible


def show(text: str) -> None:
    """Print a result."""
    click.echo(text)


def show_json(result: object) -> None:
    """Print a result for programs: one JSON document, without fields that are ``None``.

    Args:
        result: Dataclass or pydantic model; its fields are the keys. NaN and infinity become null.
    """
    from pydantic import TypeAdapter

    text = TypeAdapter(type(result)).dump_json(result, by_alias=True, exclude_none=True)
    document = {"schema": 1, **json.loads(text)}
    click.echo(_rows_on_lines(json.dumps(document, indent=2, ensure_ascii=False)))


def _rows_on_lines(text: str) -> str:
    """Join the lines of each list of whole numbers, such as the rows of a confusion matrix."""
    rows = r"\[\s+(-?\d+(?:,\s+-?\d+)*)\s+\]"
    return re.sub(rows, lambda row: f"[{' '.join(row[1].split())}]", text)


def note(text: str) -> None:
    """Print a note on stderr. A closed stderr is no error."""
    with suppress(OSError):
        click.echo(escaped(text), err=True)


def show_error(error: BaseException) -> None:
    """Print why the program ends. Problems of a spec have their own form; a stop is no error."""
    is_plain = isinstance(error, SpecError | Stopped)
    note(str(error) if is_plain else f"error: {error}")


def escaped(text: str) -> str:
    """Escape control characters, which a terminal would obey, but not line ends."""
    return "\n".join(visible(line) for line in text.split("\n"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Format rows as a table.

    Args:
        header: Names of the columns.
        rows: One text for each column.
        left: Number of columns that are aligned to the left. The others hold numbers, and are
            aligned to the right.
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
    """Format the examples below the help of a command."""
    # click wraps the lines of a paragraph unless it begins with \b.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def percent(fraction: float | None) -> str:
    """Format an accuracy as papers do; ``None`` gives an empty text."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def points(difference: float | None) -> str:
    """Format a difference of accuracies in percentage points; ``None`` gives an empty text."""
    return "" if difference is None else f"{100 * difference:+.2f}"
