"""One problem in a spec: what is wrong, where it stands, and how it is shown."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
"""Every code a message can carry; ``docs/errors.md`` has a paragraph on each."""

SHOWN = 20
"""How many problems of one report are printed; the rest are counted."""

SpecPath = tuple[str | int, ...]
"""Where something is in a spec: keys, and indices into lists."""

_SNIPPET_WIDTH = 160
_SHORTEST_START = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a spec.

    Attributes:
        code: One of :data:`CODES`.
        path: Where it is in the spec, as ``model.stages[1].shortcut``; empty for the whole.
        message: What is wrong, in one line.
        file: The file, or ``<mapping>``, or the command-line argument, that the value came from.
        line: Line in the file, counted from 1; ``None`` where there are no lines.
        col: Column, counted from 1 in characters.
        snippet: The source line, or the argument.
        allowed: What could stand there instead.
        suggestion: What was probably meant.
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


def render(problems: Sequence[Problem]) -> str:
    """Show problems as a user reads them: the first 20 in full, the rest as a number."""
    shown = [str(problem) for problem in problems[:SHOWN]]
    more = len(problems) - len(shown)
    if more:
        shown.append(f"and {more} more")
    return "\n\n".join(shown)


def dotted(path: SpecPath) -> str:
    """Write a path as users read it: ``("stages", 1, "block")`` as ``stages[1].block``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Find the allowed name that ``name`` was probably meant to be, misspelt or cut short."""
    plain = _latin(name).casefold()
    names = {name.casefold(): name for name in sorted(allowed)}
    matches = difflib.get_close_matches(plain, names, n=1, cutoff=0.6)
    if not matches and len(plain) >= _SHORTEST_START:
        matches = [name for name in names if name.startswith(plain)]
    return names[min(matches, key=len)] if matches else None


def visible(text: str) -> str:
    """Escape whatever a terminal would act on or a reader could not see.

    Letters of other scripts are left as they are, unless they look like Latin ones: those are
    followed by their code point, since a reader cannot tell them apart.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else f"\\x{ord(character):02x}"
    code_point = f"U+{ord(character):04X}"
    if not character.isprintable():  # a space other than ASCII's is not either
        return f"<{code_point}>"
    return f"{character}<{code_point}>" if character in _LATIN_LOOKALIKES else character


def _latin(text: str) -> str:
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
        f"      | {' ' * _columns(before)}^",
    ]


def _columns(text: str) -> int:
    """Count the columns a terminal gives to ``text``: two to a wide letter, none to an accent."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    accents = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - accents
