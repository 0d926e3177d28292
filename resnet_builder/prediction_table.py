"""Tables of predictions in files: CSV for spreadsheets, JSON for programs."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from resnet_builder.errors import UsageError
from resnet_builder.runs.files import refuse_existing, write_atomically

Cell = str | bool | int | float | None

SEPARATOR = ";"
"""Text between several labels in a cell."""

_DIGITS = 9
"""Significant digits of a probability: all that float32 has."""


def check_table_path(path: Path) -> None:
    """Check that a table can get this name, before anything is computed for it.

    Raises:
        UsageError: The name has another ending than ``.csv`` and ``.json``, its folder is missing,
            or there is a file of this name.
    """
    if path.suffix.lower() not in {".csv", ".json"}:
        raise UsageError(f"{path}: a table is CSV or JSON: name the file *.csv or *.json")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    refuse_existing(path)


def probability_columns(classes: Iterable[str]) -> tuple[str, ...]:
    """Names of the columns with the probability of each class."""
    return tuple(f"p_{name}" for name in classes)


def joined(classes: Iterable[str], present: Iterable[object]) -> str:
    """Names of the classes that an image has, where it may have several."""
    pairs = zip(classes, present, strict=True)
    return SEPARATOR.join(name for name, is_present in pairs if is_present)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write a table to a new file, atomically: CSV or JSON by its ending.

    In CSV, what is ``None`` or not finite is an empty cell. JSON is a list of objects, one a line,
    with null instead. Floats have 9 significant digits.

    Args:
        path: Path of the file to make; :func:`check_table_path` checks it beforehand.
        columns: Name of each column.
        rows: Cells of each row.

    Raises:
        StorageError: The disk is full, read-only or failing.
        UsageError: As for :func:`check_table_path`.
    """
    check_table_path(path)
    is_csv = path.suffix.lower() == ".csv"
    text = _csv(columns, rows) if is_csv else _json(columns, rows)
    # A file name that is not UTF-8 keeps its bytes.
    write_atomically(path, [text.encode(errors="surrogateescape")])


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [_finite(cell) for cell in row]
        writer.writerow([f"{one:.{_DIGITS}g}" if type(one) is float else one for one in cells])
    return text.getvalue()


def _json(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    lines = []
    for row in rows:
        cells = [_finite(cell) for cell in row]
        rounded = [float(f"{one:.{_DIGITS}g}") if type(one) is float else one for one in cells]
        lines.append(json.dumps(dict(zip(columns, rounded, strict=True))))
    return "[" + ",\n ".join(lines) + "]\n"


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
