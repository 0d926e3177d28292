"""Exceptions with their exit codes, and problems: the diagnostics of a spec.

ResnetBuilderError            1
├── ExportError               1  an exported file that computes something else
├── UsageError                2  an invalid command line or call
├── SpecError                 2  a spec with problems; lists all of them with their places
├── RegistryError             2  a part that is unknown or registered twice
├── PartError                 2  options or shapes that do not go together
├── DataError                 3  a dataset that is broken or unusable
│   ├── MissingDataError      3  a dataset that is not there
│   └── HubError              3  a Hub that cannot be reached, or that refuses
├── CheckpointError           4  no checkpoint that can be trusted
├── NonFiniteError            5  a loss or gradient that is infinite or not a number
├── ResourceError             6  more memory needed than there is
├── StorageError              7  a disk that is full, read-only or failing
├── BusyError                 8  a run directory in use by another process
├── ProcessLostError          9  a process of a distributed training that is gone
└── Stopped             130/143  a stop by a signal
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

CODES = (
    "yaml-syntax",
    "yaml-tag",
    "yaml-alias",
    "yaml-ambiguous",
    "duplicate-key",
    "unknown-key",
    "missing-key",
    "wrong-type",
    "out-of-range",
    "unknown-name",
    "unknown-option",
    "no-effect",
    "exclusive",
    "shape",
    "expect",
    "mismatch",
    "plugin",
    "limit",
    "extends",
)
"""Codes of problems; ``docs/reference/errors.md`` has a paragraph on each."""

MAX_PRINTED = 20
"""Number of problems that one report prints in full."""

SpecPath = tuple[str | int, ...]
"""Place in a spec: keys of mappings and indices of lists."""

_SNIPPET_WIDTH = 160
_SHORTEST_START = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """Diagnostic of a spec.

    Attributes:
        code: One of :data:`CODES`.
        path: Place in the spec, as ``model.stages[1].shortcut``; empty for the whole spec.
        message: Message in one line.
        file: File that the value comes from, or ``<mapping>``, or the command-line argument.
        line: Line in the file, counted from 1; ``None`` for a source without lines.
        col: Column, counted from 1 in characters.
        snippet: Source line, or the argument.
        allowed: Values that are allowed there.
        suggestion: Value that was probably meant.
    """

    code: str
    path: str
    message: str
    file: str = "<mapping>"
    line: int | None = None
    col: int | None = None
    snippet: str | None = None
    allowed: tuple[str, ...] = ()
    suggestion: str | None = None

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.col}"
        where = f"{self.path}: " if self.path else ""
        lines = [visible(f"{place}: error[{self.code}]: {where}{self.message}")]
        lines += _snippet_lines(self)
        if self.allowed:
            lines.append(visible(f"allowed: {', '.join(self.allowed)}"))
        if self.suggestion is not None:
            lines.append(visible(f"did you mean: {self.suggestion}"))
        return "\n".join(lines)


class ResnetBuilderError(Exception):
    """Base of this package's errors.

    The arguments are the lines of the message. Names in it may come from files: they cannot begin
    a line of their own, or do anything else to a terminal.
    """

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class ExportError(ResnetBuilderError):
    """A network that cannot be exported, or an exported file that computes something else."""


class UsageError(ResnetBuilderError):
    """An invalid command line or call."""

    exit_code = 2


class SpecError(ResnetBuilderError):
    """A spec that cannot be used.

    Attributes:
        errors: All problems, in file order.
    """

    exit_code = 2

    def __init__(self, errors: Sequence[Problem]) -> None:
        super().__init__(errors)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return render(self.errors)


class RegistryError(ResnetBuilderError):
    """A part that is not registered, or that is registered twice.

    Attributes:
        allowed: Registered names.
        suggestion: Registered name nearest to the one asked for.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, allowed: Sequence[str] = (), suggestion: str | None = None
    ) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)
        self.suggestion = suggestion


class PartError(ResnetBuilderError):
    """Options or shapes of a part that do not go together; the builder adds the place.

    Attributes:
        code: One of :data:`CODES`.
        option: Option to point at, if there is one.

    Raises:
        ValueError: There is no such code.
    """

    exit_code = 2

    def __init__(self, message: str, *, code: str = "shape", option: str | None = None) -> None:
        super().__init__(message)
        if code not in CODES:
            raise ValueError(f"no problem has the code '{code}': one of {', '.join(CODES)}")
        self.code = code
        self.option = option


class DataError(ResnetBuilderError):
    """A dataset that is missing, broken or unusable."""

    exit_code = 3


class MissingDataError(DataError):
    """A dataset that is not there at all; a spec can be checked without it."""


class HubError(DataError):
    """A Hub that cannot be reached, or that refuses to give or to take a repository."""


class CheckpointError(ResnetBuilderError):
    """No checkpoint that can be trusted."""

    exit_code = 4


class NonFiniteError(ResnetBuilderError):
    """A loss or a gradient that is infinite or not a number."""

    exit_code = 5


class ResourceError(ResnetBuilderError):
    """More memory is needed than there is."""

    exit_code = 6


class StorageError(ResnetBuilderError):
    """A disk that is full, read-only or failing."""

    exit_code = 7


class BusyError(ResnetBuilderError):
    """A run directory that another process is using."""

    exit_code = 8


class ProcessLostError(ResnetBuilderError):
    """Another process of a distributed training is gone, or does not answer."""

    exit_code = 9


class Stopped(ResnetBuilderError):
    """A stop that ``should_stop()`` asked for.

    Whoever asked knows the signal, and so the exit code: 130 or 143.
    """

    exit_code = 130


def render(problems: Sequence[Problem]) -> str:
    """Text of a report: the first 20 problems in full, the rest as a number."""
    printed = [str(problem) for problem in problems[:MAX_PRINTED]]
    more = len(problems) - len(printed)
    if more:
        printed.append(f"and {more} more")
    return "\n\n".join(printed)


def dotted(path: SpecPath) -> str:
    """Text of a path: ``("stages", 1, "block")`` is ``stages[1].block``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Allowed name that ``name`` was probably meant to be: misspelt, or cut short."""
    plain = latin(name).casefold()
    names = {name.casefold(): name for name in sorted(allowed)}
    close = difflib.get_close_matches(plain, names, n=5)
    matches = [other for other in close if _is_misspelt(plain, other)][:1]
    if not matches and len(plain) >= _SHORTEST_START:
        matches = [name for name in names if name.startswith(plain)]
    return names[min(matches, key=len)] if matches else None


def _is_misspelt(name: str, other: str) -> bool:
    """Tell whether a name is another one with errors in it, and does not mean something else.

    ``vertical_flip`` looks like ``horizontal_flip``, and ``conv5x5`` like ``conv3x3``.
    """
    numbers, other_numbers = (re.findall(r"\d+", text) for text in (name, other))
    if numbers and other_numbers and numbers != other_numbers:
        return False
    few, many = sorted((re.split(r"[\W_]+", text) for text in (name, other)), key=len)
    return all(difflib.get_close_matches(word, many, n=1) for word in few)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Number with its noun: ``1 image``, ``2,000 images``."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format an accuracy as papers do; ``None`` gives an empty text."""
    return "" if fraction is None else f"{100 * fraction:.{digits}f} %"


def points(difference: float | None) -> str:
    """Format a difference of accuracies in percentage points; ``None`` gives an empty text."""
    return "" if difference is None else f"{100 * difference:+.2f}"


def the_extra(name: str) -> str:
    """Extra of this package and how it is installed, for messages about a missing package."""
    return f"the extra \"{name}\": pip install 'resnet-builder[{name}]'"


def first_line(error: Exception) -> str:
    """First line of an error's message, or the name of its type."""
    return printable(str(error).partition("\n")[0]) or type(error).__name__


def printable(text: str) -> str:
    """Text without line ends and all else that a terminal would obey or a reader could not see.

    Each such character is written as its code. Letters of all scripts stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)  # a space other than ASCII's is not printable either
    return f"\\x{code:02x}" if character.isascii() else f"<U+{code:04X}>"


def columns(text: str) -> int:
    """Count the columns a terminal gives to ``text``: two to a wide letter, none to an accent."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    accents = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - accents


def visible(text: str) -> str:
    """Printable text in which letters that look like Latin ones are followed by their code point.

    A reader cannot tell them apart in the name of a key or a part.
    """
    if text.isascii():
        return printable(text)
    return "".join(
        f"{character}<U+{ord(character):04X}>"
        if character in _LATIN_LOOKALIKES
        else _printable_character(character)
        for character in text
    )


def latin(text: str) -> str:
    """Spell ``text`` in the Latin letters it looks like, without invisible characters."""
    kept = (c for c in text if c.isprintable())
    return "".join(_LATIN_LOOKALIKES.get(c, c) for c in kept)


# Cyrillic and Greek letters that look like a Latin one (from Unicode TR 39).
_LATIN_LOOKALIKES = dict(
    zip(
        "аеорсухіјѕԁһԛԝѵɡοανικρτυωΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТХ",
        "aeopcyxijsdhqwvgoavikptuwABEZHIKMNOPTYXABEKMHOPCTX",
        strict=True,
    )
)


def _snippet_lines(problem: Problem) -> list[str]:
    """Draw the source line with a caret below the column, cut to a readable width."""
    if problem.snippet is None:
        return []
    column = (problem.col or 1) - 1
    line = problem.snippet.replace("\t", " ")
    start = max(0, column - _SNIPPET_WIDTH // 2) if len(line) > _SNIPPET_WIDTH else 0
    before = visible(line[start:column])
    after = visible(line[column : start + _SNIPPET_WIDTH])
    number = "" if problem.line is None else str(problem.line)
    return [
        f"{number:>5} | {before}{after}".rstrip(),
        f"      | {' ' * columns(before)}^",
    ]
