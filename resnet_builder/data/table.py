"""Tables of text: CSV and TSV by Python's own module, Parquet by pyarrow."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from resnet_builder.errors import DataError, MissingDataError, UsageError, counted, the_extra
from resnet_builder.system import open_regular

_PARQUET_START = b"PAR1"
_OTHER_STARTS = {
    b"\xff\xfe": "it is UTF-16; save it as CSV in UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as CSV in UTF-8",
    b"PK": "it is a spreadsheet or a zip archive; save it as CSV in UTF-8, or unpack it",
    b"\x1f\x8b": "it is compressed; unpack it",
}
_DELIMITERS = ",;\t"
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose cells are text.

    Attributes:
        path: File that it was read from.
        columns: Names of the columns.
        rows: Cells of each row, one for each column; ``None`` where Parquet has no value.
        places: Number of each row's line in the file, counted from 1; of the row, for Parquet.
        unusable: Columns that are not text, with what they hold, by their names.
        unit: ``line`` or ``row``.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str | None]]
    places: Sequence[int]
    unusable: Mapping[str, str]
    unit: Literal["line", "row"] = "line"

    def column(self, name: str) -> list[str]:
        """Return the cells of a column without spaces around them; no value is an empty text."""
        index = self.columns.index(name)
        return [(row[index] or "").strip() for row in self.rows]


def read_table(path: Path) -> Table:
    """Read a table, whatever its ending: its content tells Parquet from text.

    Text is UTF-8, with or without a byte order mark. Its first line names the columns, which are
    separated by commas, semicolons or tabs.

    Raises:
        DataError: The file is missing, is no table, or a row has too few or too many fields.
        UsageError: It is Parquet, and pyarrow is not installed.
    """
    try:
        with open_regular(path) as file:
            if file.peek(len(_PARQUET_START)).startswith(_PARQUET_START):
                return _read_parquet(path, file)
            content = file.read()
    except FileNotFoundError as error:
        raise MissingDataError(f"{path}: there is no such table") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return _read_text(path, _decode(path, content))


def _decode(path: Path, content: bytes) -> str:
    for start, what in _OTHER_STARTS.items():
        if content.startswith(start):
            raise DataError(f"{path}: {what}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line:,} is not UTF-8; save the table as UTF-8") from error


def _read_text(path: Path, text: str) -> Table:
    first = text.lstrip("\r\n").splitlines()[:1]
    if not first:
        raise DataError(f"{path}: it is empty; its first line must name the columns")
    # Of equally many fields, the delimiter that is named first counts.
    delimiter = max(_DELIMITERS, key=lambda each: len(next(csv.reader(first, delimiter=each))))
    # Strict: a quote that is never closed would swallow all rows after it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    end = 0
    try:
        for row in reader:
            if any(row):
                rows.append(row)
                lines.append(end + 1)
            end = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}: the row that begins in line {end + 1:,}: {error}") from error
    if not rows:
        raise DataError(f"{path}: it is empty; its first line must name the columns")
    columns, rows, lines = tuple(name.strip() for name in rows[0]), rows[1:], lines[1:]
    _check_fields(path, columns, rows, lines)
    return Table(path, columns, rows, lines, {})


def _check_fields(
    path: Path, columns: Sequence[str], rows: list[list[str]], lines: list[int]
) -> None:
    wrong = []
    for row, line in zip(rows, lines, strict=True):
        while len(row) > len(columns) and not row[-1]:  # as spreadsheets write them
            row.pop()
        if len(row) != len(columns):
            wrong.append(f"line {line:,} has {counted(len(row), 'field')}")
    if wrong and len(columns) == 1:
        raise DataError(f"{path} is no table of labels: its first line names one column")
    if wrong:
        shown = ", ".join(wrong[:_MAX_NAMED])
        more = f" and {len(wrong) - _MAX_NAMED:,} more lines" if len(wrong) > _MAX_NAMED else ""
        message = f"{path}: the first line names {counted(len(columns), 'column')}, but {shown}"
        raise DataError(f"{message}{more}; put quotes around fields that hold a delimiter")


def _read_parquet(path: Path, file: BinaryIO) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            f"{path}: Parquet needs {the_extra('table')}; or save the table as CSV"
        ) from error
    try:
        opened = parquet.ParquetFile(file)
        schema = opened.schema_arrow
        unusable = {
            field.name: reason
            for field in schema
            if (reason := _unusable(pyarrow, field.type)) is not None
        }
        names = tuple(name for name in schema.names if name not in unusable)
        labels = _class_names((schema.metadata or {}).get(b"huggingface", b""))
        columns = [
            _texts(values, labels.get(name, []))
            for name, values in zip(names, opened.read(columns=[*names]).columns, strict=True)
        ]
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: it is damaged: {str(error).partition(chr(10))[0]}") from error
    rows = list(zip(*columns, strict=True))
    return Table(path, names, rows, range(1, len(rows) + 1), unusable, "row")


def _unusable(pyarrow: Any, kind: Any) -> str | None:
    """Say what a column holds that is not text or numbers."""
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind) and any(field.name == "bytes" for field in kind):
        return "images, not names of files; write them to files first"
    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    return None if any(is_kind(kind) for is_kind in plain) else f"values of type {kind}"


def _texts(values: Any, names: list[str]) -> list[str | None]:
    """Return a column as text; numbers of classes become their names, where these are known."""
    return [
        None
        if value is None
        else names[value]
        if isinstance(value, int) and 0 <= value < len(names)
        else str(value)
        for value in values.to_pylist()
    ]


def _class_names(metadata: bytes) -> dict[str, list[str]]:
    """Return the class names of columns of numbers, as Hugging Face's ``datasets`` stores them."""
    return dict(_named_features(metadata))


def _named_features(metadata: bytes) -> Iterator[tuple[str, list[str]]]:
    try:
        features = json.loads(metadata)["info"]["features"]
        for name, feature in features.items():
            names = feature.get("names") if isinstance(feature, dict) else None
            if isinstance(names, list) and all(isinstance(each, str) for each in names):
                yield name, names
    except (ValueError, LookupError, TypeError, AttributeError):
        return
