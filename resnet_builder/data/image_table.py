"""Image tables: files and their labels in the rows of a CSV, TSV or Parquet file."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from resnet_builder.data.class_folders import SPLITS, find_image_names, look_alike, shorten
from resnet_builder.data.image_files import (
    LabelledFiles,
    LabelledSplits,
    describe,
    files_by_class,
    load_images,
    load_split_images,
)
from resnet_builder.data.interfaces import (
    DATASETS,
    DatasetInfo,
    LoadContext,
    LoadedDataset,
    LoadedSplit,
    Stop,
)
from resnet_builder.data.table import Table, read_table
from resnet_builder.errors import (
    DataError,
    MissingDataError,
    PartError,
    UsageError,
    counted,
    nearest,
)

FILE_COLUMNS = ("file", "filename", "path", "filepath", "image", "image_path", "image_id", "id")
"""Usual names of the column of files, the first preferred; case and ``_`` do not count."""

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")
"""Usual names of the column of labels."""

SPLIT_COLUMNS = ("split",)
"""Usual names of the column of splits."""

_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_NUMBERS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
_MAY_BE_SPLITS = re.compile(
    r"^(is_?)?(train|val|valid|test|fold|set|subset|partition)(ing|ation)?$"
)
_SEPARATORS = "|;, "
_MAX_NAMED = 20

_Name = Annotated[str, Field(min_length=1)]


@DATASETS.register("image_table")
class ImageTable:
    """Your own images, with their labels in a table: CSV, TSV or Parquet.

    Each row names an image, by its path below a folder or by its name alone, with or without an
    ending. Images are held and cached as those of ``image_folder``. Without a column of splits
    all images are training images.

    Args:
        path: Table. Text is UTF-8, and its first line names the columns.
        root: Folder of the images, counted from that of the table; by default the table's own.
        file_column: Column of the files; by default one with a usual name, as ``file`` or ``id``.
        label_column: Column of the labels; by default one with a usual name, as ``label``.
        split_column: Column of the splits, which are train, val and test; by default ``split``,
            or a column that holds nothing else.
        separator: Text between the labels of an image, which may have several or none.
        label_columns: Columns of the classes, with 1 for an image of the class and 0 for others;
            an image may have several labels or none.
        channels: 3 for RGB, 1 for grey, 4 for RGB and alpha.
    """

    def __init__(
        self,
        *,
        path: _Name,
        root: _Name | None = None,
        file_column: _Name | None = None,
        label_column: _Name | None = None,
        split_column: _Name | None = None,
        separator: Annotated[str, Field(min_length=1, max_length=8)] | None = None,
        label_columns: Annotated[tuple[_Name, ...], Field(min_length=2, strict=False)]
        | None = None,
        channels: Literal[1, 3, 4] = 3,
    ) -> None:
        for option, value in (("label_column", label_column), ("separator", separator)):
            if label_columns is not None and value is not None:
                message = f"`{option}` has no place beside `label_columns`, one for each class"
                raise PartError(message, code="exclusive", option=option)
        if repeated := [name for name, n in Counter(label_columns or ()).items() if n > 1]:
            message = f"`{repeated[0]}` is there twice"
            raise PartError(message, code="exclusive", option="label_columns")
        self._path = path
        self._root = root
        self._file_column = file_column
        self._label_column = label_column
        self._split_column = split_column
        self._separator = separator
        self._label_columns = label_columns
        self._channels = channels
        self._is_multi_label = separator is not None or label_columns is not None
        self.info = DatasetInfo(channels=channels, multi_label=self._is_multi_label)

    def inspect(self, data_dir: Path, stop: Stop) -> DatasetInfo:
        """Read the table and look for its images, without decoding one.

        Raises:
            DataError: The table or a row of it cannot be used.
            Stopped: ``stop`` became true.
        """
        return describe(self._list(data_dir, stop), self._channels)

    def load(self, context: LoadContext) -> LoadedDataset:
        """Read the table, scan every image, and hold the images in memory if they fit.

        Raises:
            DataError: The table or a row of it cannot be used, or images are broken or of several
                sizes.
            Stopped: ``context.stop`` became true.
        """
        return load_images(self._list(context.data_dir, context.stop), self._channels, context)

    def load_split(self, context: LoadContext, split: str, *, undivided: bool) -> LoadedSplit:
        """Load one split as :meth:`load` does; images of the others may be missing.

        Raises:
            DataError: The table or a row of the split cannot be used, or images are broken or of
                several sizes.
            Stopped: ``context.stop`` became true.
            UsageError: There are other splits, but not this one.
        """
        listed = self._list(context.data_dir, context.stop, split, undivided=undivided)
        return load_split_images(listed, self._channels, context)

    def _list(
        self, data_dir: Path, stop: Stop, only: str | None = None, *, undivided: bool = False
    ) -> LabelledSplits:
        """List the labelled files of all splits, or of one."""
        table = read_table(data_dir / self._path)
        root = table.path.parent / (self._root or "")
        if not root.is_dir():
            raise MissingDataError(f"{root} is not a folder; data.dataset.root holds the images")
        report = _Report()
        columns = self._find_columns(table, report)
        if columns.split is None and only is not None and not undivided:
            raise UsageError(
                f"there are no {only} images: {table.path} has no column of splits; a training "
                "takes all of its images, and `evaluate --data` takes them as test images"
            )
        rows = _read_rows(table, columns, only or "train", report)
        _check_present(table, rows, only, report)
        names, passed_over = _list_images(table, root, stop)
        _find_files(rows, root, names, only, report)
        rows = [row for row in rows if only in {None, row.split}]
        _split_labels(rows, columns, self._separator, report)
        if self._is_multi_label:
            _count_unlabelled(rows, report)
        else:
            rows = _refuse_unlabelled(rows, only, report)
        rows = _without_repeats(rows, report)
        report.raise_problems(table.path)
        training = [row for row in rows if row.split == (only or "train")]
        classes = tuple(self._label_columns or _sorted_labels(training))
        _check_classes(table.path, rows, classes, only, report)
        label_files = _multi_hot if self._is_multi_label else _one_class_each
        splits = {
            split: label_files(chosen, classes)
            for split in SPLITS
            if (chosen := sorted((r for r in rows if r.split == split), key=lambda row: row.name))
        }
        notices = (f"{table.path}: {notice}" for notice in report.notices)
        return LabelledSplits(root, classes, splits, (*passed_over, *notices))

    def _find_columns(self, table: Table, report: "_Report") -> "_Columns":
        file = _find_column(table, "file_column", self._file_column, FILE_COLUMNS, report)
        split = _find_column(table, "split_column", self._split_column, SPLIT_COLUMNS, report)
        if file is None:
            raise _no_column(table, "file_column", FILE_COLUMNS)
        label = None
        if self._label_columns is None:
            label = _find_column(table, "label_column", self._label_column, LABEL_COLUMNS, report)
        if split is None:
            split = _column_of_splits(table, {file, label, *(self._label_columns or ())}, report)
        if self._label_columns is not None:
            for name in self._label_columns:
                _check_column(table, "label_columns", name)
            return _Columns(file, split, self._label_columns, is_one_hot=True)
        others = [name for name in table.columns if name and name not in {file, split}]
        if label is None and len(others) == 1:
            [label] = others
            report.notices.append(f"labels are read from column `{label}`, the only other one")
        if label is None:
            raise _no_column(table, "label_column", LABEL_COLUMNS, _hint_of_one_hot(table, others))
        return _Columns(file, split, (label,), is_one_hot=False)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Names of the columns that are read."""

    file: str
    split: str | None
    labels: tuple[str, ...]
    is_one_hot: bool


@dataclass(slots=True)
class _Report:
    """What is wrong with rows, all of which is reported at once, and notices of the table.

    Attributes:
        problems: Problems, a line each.
        hints: Advice that is told with the problems.
        notices: Notices for the user.
    """

    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def raise_problems(self, path: Path) -> None:
        """Raise an error if there are problems."""
        if self.problems:
            count = counted(len(self.problems), "row")
            more = len(self.problems) - _MAX_NAMED
            raise DataError(
                f"{path}: {count} cannot be used; repair or remove them",
                *(f"  {problem}" for problem in self.problems[:_MAX_NAMED]),
                *([f"  and {more:,} more"] if more > 0 else []),
                *(f"  {hint}" for hint in self.hints),
            )


@dataclass(slots=True)
class _Row:
    """A row of the table.

    Attributes:
        place: Its line, for messages.
        file: Cell of the column of files.
        split: Split of the image.
        cells: Cells of the columns of labels.
        labels: Labels of the image.
        name: Path of the image below the root; empty where it is not known.
    """

    place: str
    file: str
    split: str
    cells: tuple[str, ...]
    labels: tuple[str, ...] = ()
    name: str = ""


def _find_column(
    table: Table, option: str, given: str | None, usual: Sequence[str], report: _Report
) -> str | None:
    """Return the column that an option names, or else the first one with a usual name."""
    if given is not None:
        _check_column(table, option, given)
        return given
    plain = {name: re.sub(r"[\W_]+", "", name).casefold() for name in table.columns}
    wanted = [name.replace("_", "") for name in usual]
    found = [name for word in wanted for name in plain if plain[name] == word]
    if not found:
        return None
    if len(found) > 1:
        unread = ", ".join(f"`{name}`" for name in found[1:])
        report.notices.append(
            f"column `{found[0]}` is read, {unread} not; data.dataset.{option} names another"
        )
    _check_column(table, option, found[0])
    return found[0]


def _column_of_splits(table: Table, others: Collection[str | None], report: _Report) -> str | None:
    """Return a column that holds nothing but names of splits, ``train`` among them."""
    for name in dict.fromkeys(table.columns):
        if name and name not in others and table.columns.count(name) == 1:
            cells = {_SPLIT_OF.get(cell.casefold()) for cell in table.column(name)}
            if None not in cells and len(cells) > 1 and "train" in cells:
                report.notices.append(f"column `{name}` is read as that of the splits")
                return name
    unread = [name for name in table.columns if _MAY_BE_SPLITS.fullmatch(name.casefold())]
    if unread := [name for name in unread if name not in others]:
        report.notices.append(
            f"column `{unread[0]}` is not read, and all images are training images: a column "
            "`split` may hold train, val and test"
        )
    return None


def _check_column(table: Table, option: str, name: str) -> None:
    if name in table.unusable:
        raise DataError(f"{table.path}: column `{name}` holds {table.unusable[name]}")
    if table.columns.count(name) > 1:
        raise DataError(f"{table.path}: {table.columns.count(name)} columns are called `{name}`")
    if name not in table.columns:
        meant = nearest(name, table.columns)
        raise DataError(
            f"{table.path}: data.dataset.{option}: there is no column `{name}`; there are "
            f"{_present(table)}" + (f"; did you mean: {meant}" if meant else "")
        )


def _no_column(table: Table, option: str, usual: Sequence[str], *hints: str) -> DataError:
    return DataError(
        f"{table.path}: no column is called {', '.join(usual[:-1])} or {usual[-1]}; there are "
        f"{_present(table)}; name it by data.dataset.{option} (the first line of the file must "
        "name the columns)",
        *(f"  {hint}" for hint in hints if hint),
    )


def _hint_of_one_hot(table: Table, columns: Sequence[str]) -> str:
    """Hint of columns of 0 and 1, which may be one for each class; empty without them."""
    names = [
        name
        for name in dict.fromkeys(columns)
        if {cell.casefold() for cell in table.column(name)} <= _NUMBERS.keys()
    ]
    if not table.rows or len(names) < 2:
        return ""
    listed = ", ".join(names)
    return f"if each class has a column of 0 and 1, set data.dataset.label_columns to [{listed}]"


def _present(table: Table) -> str:
    held = (f"{name} (it holds {what})" for name, what in table.unusable.items())
    return shorten((*(name or "one without a name" for name in table.columns), *held))


def _read_rows(table: Table, columns: _Columns, whole: str, report: _Report) -> list[_Row]:
    """Read the rows; without a column of splits, all are of the split ``whole``."""
    files = table.column(columns.file)
    splits = [whole] * len(files) if columns.split is None else table.column(columns.split)
    labels = zip(*(table.column(name) for name in columns.labels), strict=True)
    rows = []
    for number, file, split, cells in zip(table.places, files, splits, labels, strict=True):
        place = f"{table.unit} {number:,}"
        if not file:
            report.problems.append(f"{place} names no file")
        elif split.casefold() not in _SPLIT_OF:
            what = f"'{split}'" if split else "empty"
            report.problems.append(f"{place}: its split is {what}; it must be train, val or test")
        else:
            rows.append(_Row(place, file, _SPLIT_OF[split.casefold()], cells))
    return rows


def _check_present(table: Table, rows: list[_Row], only: str | None, report: _Report) -> None:
    wanted, present = only or "train", dict.fromkeys(row.split for row in rows)
    if wanted in present or report.problems:
        return
    if not present:
        raise DataError(f"{table.path} has no rows, but for the names of the columns")
    message = f"there are no {wanted} images; there are {', '.join(present)}"
    raise DataError(f"{table.path}: {message}") if only is None else UsageError(message)


def _list_images(table: Table, root: Path, stop: Stop) -> tuple[list[str], list[str]]:
    """List the images below the root, and notices of all else but the table."""
    own_name = os.path.relpath(table.path, root).replace(os.sep, "/")
    return find_image_names(root, stop, besides=[own_name])


def _find_files(
    rows: list[_Row], root: Path, names: list[str], only: str | None, report: _Report
) -> None:
    """Find the image of each row, and images without a row."""
    find = _file_finder(root, names)
    without_row = dict.fromkeys(names)
    for row in rows:
        found = find(row.file)
        for name in found:
            without_row.pop(name, None)
        if only not in {None, row.split}:
            continue
        if len(found) == 1:
            row.name = found[0]
        elif found:
            either = shorten(found, 3)
            report.problems.append(
                f"{row.place}: '{row.file}' is the name of {either}; write the path, or name their "
                "folder by data.dataset.root"
            )
        else:
            report.problems.append(f"{row.place}: there is no image '{row.file}' in {root}")
    if without_row:
        images = counted(len(without_row), "image")
        report.notices.append(
            f"passed over {images} in {root} without a row: {shorten(without_row)}"
        )


def _file_finder(root: Path, names: list[str]) -> Callable[[str], Sequence[str]]:
    """Return a function that finds the images that a cell may mean; several are ambiguous."""
    known = frozenset(names)

    @cache  # each index is made once it is needed: tables may have millions of rows
    def index_by(key: Callable[[str], str]) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in names:
            index.setdefault(key(name), []).append(name)
        return index

    def find(file: str) -> Sequence[str]:
        if file in known:
            return [file]
        path = root / file
        normal = os.path.relpath(path, root).replace(os.sep, "/")
        if normal in known or os.path.isfile(path):
            return [normal]
        for key in (_without_ending, os.path.basename, _stem):
            if found := index_by(key).get(file):
                return found
        return find(file.replace("\\", "/")) if "\\" in file else []

    return find


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0]


def _stem(name: str) -> str:
    return _without_ending(os.path.basename(name))


def _split_labels(
    rows: list[_Row], columns: _Columns, separator: str | None, report: _Report
) -> None:
    """Read the labels in the cells of each row."""
    for row in rows:
        if columns.is_one_hot:
            cells = dict(zip(columns.labels, row.cells, strict=True))
            for name, cell in cells.items():
                if cell.casefold() not in _NUMBERS:
                    problem = f"{row.place}: `{name}` is '{cell}'; it must be 0 or 1"
                    report.problems.append(problem)
            row.labels = tuple(
                name for name, cell in cells.items() if _NUMBERS.get(cell.casefold())
            )
        else:
            [cell] = row.cells
            if separator is not None and cell.startswith("[") and cell.endswith("]"):
                problem = f"{row.place}: its label is {cell}; write the labels without brackets"
                report.problems.append(problem)
            found = [cell] if separator is None else map(str.strip, cell.split(separator))
            row.labels = tuple(dict.fromkeys(label for label in found if label))


def _count_unlabelled(rows: list[_Row], report: _Report) -> None:
    """Tell of images that have none of several labels, which is allowed."""
    counts = Counter(row.split for row in rows if not row.labels)
    for split, count in counts.items():
        report.notices.append(f"{counted(count, 'image')} of {split} without a label: of no class")


def _refuse_unlabelled(rows: list[_Row], only: str | None, report: _Report) -> list[_Row]:
    """Report rows without a label, but for a test split without any, which is passed over."""
    test = [row for row in rows if row.split == "test"]
    if only is None and test and not any(row.labels for row in test):
        images = counted(len(test), "image")
        report.notices.append(f"passed over test: its {images} have no labels; predict takes them")
        rows = [row for row in rows if row.split != "test"]
    report.problems += [f"{row.place}: its label is empty" for row in rows if not row.labels]
    report.hints += _hint_of_separator({label for row in rows for label in row.labels})
    return rows


def _without_repeats(rows: list[_Row], report: _Report) -> list[_Row]:
    """Keep the first of rows that say the same of an image; report those that contradict it."""
    first: dict[str, _Row] = {}
    repeated = []
    for row in rows:
        if not row.name:
            continue  # it has been reported
        other = first.setdefault(row.name, row)
        if other is row:
            continue
        if other.split != row.split:
            what = f"'{row.file}' is in {row.split} here, and in {other.split} in {other.place}"
            report.problems.append(f"{row.place}: {what}")
        elif set(other.labels) != set(row.labels):
            ours, theirs = (", ".join(each.labels) or "nothing" for each in (row, other))
            report.problems.append(
                f"{row.place}: '{row.file}' is {ours} here, and {theirs} in {other.place}; to give "
                "an image several labels, write them into one row, with data.dataset.separator"
            )
        else:
            repeated.append(f"'{row.file}' in {row.place}")
    if repeated:
        count = counted(len(repeated), "repeated row")
        report.notices.append(f"passed over {count}: {shorten(repeated)}")
    return list(first.values())


def _sorted_labels(rows: list[_Row]) -> list[str]:
    """Return the labels, sorted: numbers by their value, all else as text."""
    names = {label for row in rows for label in row.labels}
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _check_classes(
    path: Path, rows: list[_Row], classes: Collection[str], only: str | None, report: _Report
) -> None:
    """Compare the labels of each split with the classes.

    Raises:
        DataError: Other splits have labels that train has not, or train lacks one.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.split, set()).update(row.labels)
    for split, labels in found.items():
        if foreign := labels - set(classes):
            raise DataError(
                f"{path}: {split} has labels that train has not: {shorten(sorted(foreign))}; train "
                f"has {shorten(classes)}"
            )
        missing = [name for name in classes if name not in labels]
        if missing and split == "train" and only is None:
            raise DataError(
                f"{path}: no training image has the label {shorten(missing)}; leave it out of "
                "data.dataset.label_columns"
            )
        if missing:
            report.notices.append(f"{split} has no images of {shorten(missing)}")
    report.notices += look_alike(classes)
    report.notices += _hint_of_separator(classes)
    training = [row for row in rows if row.split == "train"]
    if only is None and 2 < len(training) == len(classes):
        report.notices.append("no two training images have the same label: is its column right?")


def _hint_of_separator(classes: Collection[str]) -> Iterator[str]:
    """Yield a notice if labels look like several ones: they have fewer, and known, parts."""
    for separator in _SEPARATORS:
        joined = sorted(name for name in classes if separator in name)
        parts = {part.strip() for name in classes for part in name.split(separator)}
        if joined and len(parts) < len(classes) and not parts.isdisjoint(classes):
            yield (
                f"labels like '{joined[0]}' are classes of their own; if they are several labels, "
                f'set data.dataset.separator to "{separator}"'
            )
            return


def _one_class_each(rows: list[_Row], classes: tuple[str, ...]) -> LabelledFiles:
    """Label the images of a split with the number of their class."""
    images: dict[str, list[str]] = {}
    for row in rows:
        [label] = row.labels
        images.setdefault(label, []).append(row.name)
    return files_by_class(images, classes)


def _multi_hot(rows: list[_Row], classes: tuple[str, ...]) -> LabelledFiles:
    """Label the images of a split with 1 for each of their classes, and 0 for the others."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.zeros(len(rows), len(classes), dtype=torch.uint8)
    for image_labels, row in zip(labels, rows, strict=True):
        image_labels[[numbers[label] for label in row.labels]] = 1
    return LabelledFiles([row.name for row in rows], labels)
