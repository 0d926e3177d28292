"""YAML sources: text within limits, YAML 1.2 scalars, and source positions.

PyYAML scans and parses the text. Its composer, resolver and constructor are left out, because they
know tags and the scalars of YAML 1.1, and a spec has none of these. So no tag runs code. Aliases
are expanded here, and what they stand for counts towards the limits each time.

An error after which reading can go on is noted, so that one report holds all problems.
"""

import errno
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from resnet_builder.errors import Problem, SpecError, SpecPath, StorageError, dotted
from resnet_builder.spec.embedded import embedded_spec
from resnet_builder.system import open_regular

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_SCALAR = 4_096
MAX_KEY = 128
INTEGERS = range(-(2**63), 2**63)

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Source:
    r"""A file, a command-line argument, or a mapping.

    Attributes:
        name: Name in messages.
        text: Text, with ``\n`` as line end; empty for a mapping.
        path: Path of a file.
        has_lines: Whether messages give lines and columns, as they do for files.
    """

    name: str
    text: str = ""
    path: Path | None = None
    has_lines: bool = True

    @cached_property
    def lines(self) -> list[str]:
        """Lines of the text."""
        return self.text.split("\n")

    def place(self, line: int, column: int) -> "Place":
        """Place at a line and a column, counted from 0."""
        return Place(self, line + 1, column + 1)


@dataclass(frozen=True, slots=True)
class Place:
    """Position in a source; a mapping has no lines.

    Attributes:
        source: The source.
        line: Line, counted from 1.
        column: Column, counted from 1 in characters.
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
        """Problem at this place."""
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
    """A value and its position.

    Attributes:
        value: A scalar, or the nodes of a mapping or a list.
        place: Position of the value.
        key_place: Position of its key, if it is an entry of a mapping.
        replaces: Part in a file below, if another part was laid over it.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    place: Place
    key_place: Place | None = None
    replaces: "Node | None" = None


@dataclass(frozen=True, slots=True)
class Document:
    """A source after reading.

    Attributes:
        source: The source.
        root: Its values; what could not be understood is left out, or read as probably meant.
        problems: Problems after which reading could go on.
    """

    source: Source
    root: Node
    problems: tuple[Problem, ...] = ()


def plain(node: Node) -> Any:
    """Plain data of a node: dicts, lists and scalars."""
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value


def read_yaml(path: Path, *, named_at: tuple[Place, SpecPath] | None = None) -> Document:
    """Read a YAML file, or the spec in the header of a file of weights.

    Args:
        path: The file.
        named_at: Where another file names it, if one does; a missing file is reported there.

    Raises:
        SpecError: There is no such file, it is no regular file, too large, not YAML in UTF-8, or
            weights without a spec.
        StorageError: It cannot be read.
    """

    def refused(code: str, message: str) -> SpecError:
        if named_at is None:
            return SpecError([Problem(code, "", message, file=str(path))])
        place, at = named_at
        return SpecError([place.problem("extends", f"{path}: {message}", path=at)])

    try:
        with open_regular(path) as file:
            if (spec := embedded_spec(file)) is not None:
                return parse_yaml(source_of(spec, str(path), path=path))
            file.seek(0)
            data = file.read(MAX_BYTES + 1)
    except ValueError as error:
        raise refused("wrong-type", str(error)) from None
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
            raise refused("unknown-name", "there is no such file") from None
        if error.errno in {errno.EISDIR, errno.EINVAL}:
            raise refused("wrong-type", str(error.strerror)) from None
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise refused("limit", f"the file is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The error counts from behind a byte order mark, and holds what it counts in.
        before = _with_unix_lines(error.object[: error.start].decode())
        shown = _with_unix_lines(error.object.decode(errors="replace"))
        message = f"byte 0x{error.object[error.start]:02X} is not UTF-8; save the file as UTF-8"
        place = _place_after(before, Source(str(path), shown, path))
        raise SpecError([place.problem("yaml-syntax", message)]) from error
    return parse_yaml(source_of(text, str(path), path=path))


# What YAML 1.2.2 does not call printable (section 5.1), and what YAML 1.1, which PyYAML reads,
# takes for line breaks beside those of 1.2 (NEL, LS and PS).
_REFUSED_CHARACTER = re.compile(
    "[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)


def source_of(
    text: str, name: str = "<text>", *, path: Path | None = None, has_lines: bool = True
) -> Source:
    """Source of a text, with the line ends of every system read alike.

    Args:
        text: The text.
        name: Its name in messages.
        path: Path of a file.
        has_lines: Whether messages give lines and columns.

    Raises:
        SpecError: There is a character in it that YAML does not allow.
    """
    source = Source(name, _with_unix_lines(text), path, has_lines)
    if match := _REFUSED_CHARACTER.search(source.text):
        message = f"character U+{ord(match[0]):04X} is not allowed in YAML"
        hint = "; is the file UTF-16? save it as UTF-8" if match[0] == "\0" else ""
        place = _place_after(source.text[: match.start()], source)
        raise SpecError([place.problem("yaml-syntax", message + hint)])
    return source


def _with_unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place_after(before: str, source: Source) -> Place:
    return source.place(before.count("\n"), len(before) - before.rfind("\n") - 1)


def parse_yaml(source: Source, *, start: int = 0, path: SpecPath = ()) -> Document:
    """Read YAML 1.2 text.

    Args:
        source: The text, as :func:`source_of` makes it.
        start: Index at which the YAML begins; what comes before counts in columns only.
        path: Place in the spec to which the values belong.

    Raises:
        SpecError: It is not YAML, or over a limit.
    """
    reader = _Reader(source, " " * start + source.text[start:])
    root = reader.document(path)
    return Document(source, root, tuple(reader.problems))


def parse_plain(text: str, name: str = "<text>") -> Any:
    """Plain data of YAML text.

    Raises:
        SpecError: It has problems.
    """
    document = parse_yaml(source_of(text, name))
    if document.problems:
        raise SpecError(document.problems)
    return plain(document.root)


_NO_ALIAS = (
    "`&` begins an anchor and `*` an alias, whose names are letters, digits, `-` and `_`; quote "
    "text that begins with `&` or `*`"
)
_NO_TAGS = "tags are not supported; quote text that begins with `!`"
_HALF_PAIR = "half of a surrogate pair is not a character"
_SURROGATE = re.compile("[\ud800-\udfff]")
_WIDE_INTEGER = "whole numbers have at most 64 bits"


class _Reader:
    """Nodes made of the events of PyYAML's parser."""

    def __init__(self, source: Source, text: str) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._loader: Any = yaml.SafeLoader(text)  # Any: its stubs have no types
        self._next: Callable[[], Any] = self._loader.get_event
        self._num_nodes = 0
        self._depth = 0
        # Each anchor's node and number of nodes; ``None`` while it is being read.
        self._anchors: dict[str, tuple[Node, int] | None] = {}

    def document(self, path: SpecPath) -> Node:
        try:
            return self._document(path)
        # Not only YAMLErrors come out of PyYAML: "\UFFFFFFFF" is an OverflowError.
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            problem = _syntax_problem(error, self._source, self._loader.get_mark())
            raise SpecError([*self.problems, problem]) from error
        finally:
            self._loader.dispose()

    def _document(self, path: SpecPath) -> Node:
        self._next()  # the start of the stream
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return Node(None, self._source.place(0, 0))
        directives = self._source.lines[event.start_mark.line : event.end_mark.line]
        # PyYAML ignores a directive that it does not know.
        if any(line.split("#")[0].split() not in ([], ["%YAML", "1.2"]) for line in directives):
            message = "the only directive that is supported is `%YAML 1.2`"
            self._note(event, "yaml-syntax", message)
        root = self._node(self._next(), path)
        self._next()  # the end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            message = "a second document begins here; a spec is a single one"
            self._note(event, "yaml-syntax", message)
        return root

    def _node(self, event: Any, path: SpecPath) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event, path)
        before = self._num_nodes
        self._check(event, path, MAX_SCALAR)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = Node(self._value(event, path), self._place(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = node, self._num_nodes - before
        return node

    def _aliased(self, event: Any, path: SpecPath) -> Node:
        """Node of an alias: that of its anchor, which counts towards the limits once more."""
        name = event.anchor
        anchored = self._anchors.get(name)
        if anchored is None:
            message = f"`*{name}` stands inside what `&{name}` names"
            if name not in self._anchors:
                message = f"no `&{name}` stands before `*{name}`; quote text that begins with `*`"
            self._note(event, "yaml-alias", message, path)
            return Node(None, self._place(event))
        node, size = anchored
        self._num_nodes += size
        self._check_limits(event, 0, depth=self._depth + _height(node))
        return node

    def _value(self, event: Any, path: SpecPath) -> "Scalar | dict[str, Node] | list[Node]":
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        self._depth += 1
        value: dict[str, Node] | list[Node]
        if isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := self._next(), yaml.SequenceEndEvent):
                value.append(self._node(item, (*path, len(value))))
        else:
            value = {}
            merged: dict[str, Node] = {}
            while not isinstance(key := self._next(), yaml.MappingEndEvent):
                self._add_entry(value, merged, key, path)
            value = {**merged, **value}
        self._depth -= 1
        return value

    def _add_entry(
        self, entries: dict[str, Node], merged: dict[str, Node], event: Any, path: SpecPath
    ) -> None:
        """Add an entry of a mapping; those of a merge key are kept apart, for all others win."""
        key = event.value if isinstance(event, yaml.ScalarEvent) else "?"
        at = (*path, key)
        if isinstance(event, yaml.ScalarEvent) and key == "<<" and event.style is None:
            self._check(event, at, MAX_KEY)
            self._merge(merged, event, at)
            return
        is_good = self._is_good_key(event, at)
        if is_good and key in entries:
            first = entries[key].key_place
            self._note(event, "duplicate-key", f"given twice; the first is at {first}", at)
        node = self._node(self._next(), at)
        if is_good:
            entries.setdefault(key, Node(node.value, node.place, self._place(event)))

    def _merge(self, merged: dict[str, Node], event: Any, at: SpecPath) -> None:
        """Add the entries of a merge key, https://yaml.org/type/merge.html."""
        num_problems = len(self.problems)
        node = self._node(self._next(), at)
        for one in node.value if isinstance(node.value, list) else [node]:
            if isinstance(one.value, dict):
                merged.update({key: item for key, item in one.value.items() if key not in merged})
            elif (
                len(self.problems) == num_problems
            ):  # otherwise an alias is wrong, and it was noted
                message = "`<<` takes a mapping, or a list of them, usually by an alias as `*name`"
                self._note(event, "yaml-alias", message, at)

    def _is_good_key(self, event: Any, at: SpecPath) -> bool:
        """Tell whether a key is text; note why not."""
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, at)
            message = "a key must be text, not a mapping, a list or an alias"
            self._note(event, "wrong-type", message, at)
            return False
        self._check(event, at, MAX_KEY)
        key = event.value
        if _SURROGATE.search(key):
            self._note(event, "yaml-syntax", _HALF_PAIR, at)
        elif event.style is not None:  # it is quoted
            return True
        else:
            quoted = f'"{key}"'
            try:
                if isinstance(resolve(key), str):
                    return True
                message = f"a key must be text, not {key or 'nothing'}"
                self._note(event, "wrong-type", message, at, quoted if key else None)
            except AmbiguousError as error:
                self._note(event, "yaml-ambiguous", str(error), at, quoted)
        return False

    def _scalar(self, event: Any, path: SpecPath) -> Scalar:
        text: str = event.value
        if _SURROGATE.search(text):
            self._note(event, "yaml-syntax", _HALF_PAIR, path)
            return ""
        if event.style is not None:  # it is quoted
            return text
        try:
            value = resolve(text)
        except AmbiguousError as error:
            self._note(event, "yaml-ambiguous", str(error), path, error.spelling)
            return error.value
        if isinstance(value, int) and value not in INTEGERS:
            self._note(event, "limit", _WIDE_INTEGER, path)
        return value

    def _check(self, event: Any, path: SpecPath, max_scalar: int) -> None:
        """Note the tag of a node; stop at the limits."""
        self._num_nodes += 1
        size = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        depth = self._depth + isinstance(event, yaml.CollectionStartEvent)
        self._check_limits(event, size, max_scalar, depth=depth)
        if tag := getattr(event, "tag", None):
            shown = re.sub("^tag:yaml.org,2002:", "!!", tag)
            self._note(event, "yaml-tag", f"'{shown}': {_NO_TAGS}", path)

    def _check_limits(
        self, event: Any, size: int, max_scalar: int = MAX_SCALAR, *, depth: int
    ) -> None:
        message = ""
        if self._num_nodes > MAX_NODES:
            message = f"more than {MAX_NODES} values"
        elif size > max_scalar:
            message = f"{size} characters are more than {max_scalar}"
        elif depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH}"
        if message:
            raise SpecError([*self.problems, self._place(event).problem("limit", message)])

    def _place(self, event: Any) -> Place:
        return self._source.place(event.start_mark.line, event.start_mark.column)

    def _note(
        self,
        event: Any,
        code: str,
        message: str,
        path: SpecPath = (),
        suggestion: str | None = None,
    ) -> None:
        problem = self._place(event).problem(code, message, path=path, suggestion=suggestion)
        self.problems.append(problem)


def _height(node: Node) -> int:
    """Number of collections that stand in one another."""
    if not isinstance(node.value, dict | list):
        return 0
    items = node.value.values() if isinstance(node.value, dict) else node.value
    return 1 + max(map(_height, items), default=0)


# Usual complaints of PyYAML, as patterns of "context: problem", and what is said instead: at the
# place where the context began, and at the place of the problem. Others are shown in its own words.
_WHERE_IT_BEGAN = {
    "an? (?:alias|anchor):": _NO_ALIAS,
    "tag handle|a tag:": _NO_TAGS,
    "flow sequence:.*stream end": "this `[` is never closed",
    "flow mapping:.*stream end": "this `{{` is never closed",
    "quoted scalar:.*unexpected": "this quote is never closed",
    "could not find expected ':'": "this is no `key: value`: there is no colon with a space after "
    "it",
}
_WHERE_IT_STOPPED = {
    r"character '\\t'": "a tab cannot indent or separate: use spaces",
    "character '(.)' that cannot start": "text cannot begin with `{0}` unless it is quoted",
    "double-quoted scalar:.*escape": r"in double quotes, `\` begins an escape: put the text in "
    r"single quotes, or write `\\`",
    "mapping values are not allowed": "`:` cannot stand here: indent all keys of a mapping alike, "
    "put a space after each key's colon, and quote text that holds a colon and a space",
    "expected <block end>, but found '<block": "this line is indented otherwise than the lines "
    "before it: indent all keys of a mapping alike, and all items of a list",
    "expected <block end>, but found '<scalar>'": "nothing can follow the quote that ends a text; "
    "within single quotes, write '' for one",
    r"expected <block end>, but found '[-?]'": "a key and an item of a list cannot stand side by "
    "side: indent the list below its key",
    "sequence entries are not allowed": "a list begins on the line below its key, or is written "
    "[a, b]",
    "expected the node content, but found '(.+)'": "a value is missing before `{0}`",
    "expected ',' or '(.)', but got '(.+)'": "`,` or `{0}` is missing before `{1}`",
    "expected '<document start>'": "the spec has ended above this line: indent all keys alike, and "
    "put all of them in the braces, if there are any",
}
_CODES = {_NO_ALIAS: "yaml-alias", _NO_TAGS: "yaml-tag"}


def _syntax_problem(error: Exception, source: Source, reached: yaml.Mark) -> Problem:
    """Problem of a text that PyYAML cannot read."""

    def place(mark: yaml.Mark) -> Place:
        return source.place(mark.line, mark.column)

    if not isinstance(error, yaml.MarkedYAMLError):
        # It is chr()'s own error: PyYAML does not check the number of an escape.
        message = "this escape is beyond the last character of Unicode, `\\U0010FFFF`"
        return place(reached).problem("yaml-syntax", message)
    here = place(error.problem_mark or reached)
    context = place(error.context_mark) if error.context_mark else here
    for at, complaints in ((context, _WHERE_IT_BEGAN), (here, _WHERE_IT_STOPPED)):
        for pattern, message in complaints.items():
            if match := re.search(pattern, f"{error.context or ''}: {error.problem or ''}"):
                code = _CODES.get(message, "yaml-syntax")
                return at.problem(code, message.format(*match.groups()))
    began = f" {error.context} that began at {context}," if error.context else ""
    return here.problem("yaml-syntax", f"this is not YAML:{began} {error.problem}")


class AmbiguousError(ValueError):
    """A plain word that versions of YAML read differently.

    Attributes:
        value: Value that was probably meant.
        spelling: Unambiguous spelling of it.
    """

    def __init__(self, message: str, value: Scalar, spelling: str) -> None:
        super().__init__(message)
        self.value = value
        self.spelling = spelling


_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEXADECIMAL = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

# YAML 1.1 reads these otherwise.
_SWITCHES = {
    **dict.fromkeys(("yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("no", "No", "NO", "off", "Off", "OFF"), False),
}
_ZERO_FIRST = re.compile(r"([-+]?)0+([0-9]+)")
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")


def resolve(text: str) -> Scalar:
    """Meaning of a plain (unquoted) word in YAML 1.2, section 10.3.2.

    Raises:
        AmbiguousError: YAML 1.1 reads it otherwise, and so do many programs.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text in _SWITCHES:
        spelling = "true" if _SWITCHES[text] else "false"
        message = f"'{text}' is {spelling} in YAML 1.1 and text in YAML 1.2"
        raise AmbiguousError(f'{message}: write {spelling} or "{text}"', _SWITCHES[text], spelling)
    if match := _ZERO_FIRST.fullmatch(text):
        sign, digits = match[1], match[2].lstrip("0") or "0"
        decimal = f"{sign}{digits}".removeprefix("+")
        octal = f"0o{digits} for octal, " if re.fullmatch("[0-7]+", sign + digits) else ""
        message = f"'{text}' is ambiguous, as YAML 1.1 reads a leading zero as octal"
        raise AmbiguousError(
            f'{message}: write {decimal}, {octal}or "{text}" for text', int(decimal), decimal
        )
    bare = text.replace("_", "")
    if bare != text and _UNDERSCORED.fullmatch(text):
        message = f"'{text}' is a number in YAML 1.1 and text in YAML 1.2"
        raise AmbiguousError(f'{message}: write {bare} or "{text}"', resolve(bare), bare)
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL_OR_HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


MAPPING = Source("<mapping>", has_lines=False)


def document_of(mapping: Mapping[str, object]) -> Document:
    """Document of plain data.

    Raises:
        SpecError: There is something in it that YAML has no word for, or too much of it.
    """
    count = 0
    place = Place(MAPPING)

    def check(is_good: bool, code: str, message: str, path: SpecPath) -> None:
        if not is_good:
            raise SpecError([place.problem(code, message, path=path)])

    def text(value: str, path: SpecPath, most: int) -> str:
        size = len(value)
        check(size <= most, "limit", f"{size} characters are more than {most}", path)
        check(not _SURROGATE.search(value), "yaml-syntax", _HALF_PAIR, path)
        return str(value)

    def build(value: object, path: SpecPath) -> Node:
        nonlocal count
        count += 1
        check(count <= MAX_NODES, "limit", f"more than {MAX_NODES} values", path)
        if isinstance(value, Mapping | list | tuple):
            check(len(path) < MAX_DEPTH, "limit", f"nested deeper than {MAX_DEPTH}", path)
        if isinstance(value, Mapping):
            entries = {}
            for key, item in value.items():
                is_text = isinstance(key, str)
                check(is_text, "wrong-type", f"a key must be text, not {key!r}", path)
                node = build(item, (*path, key))
                entries[text(key, path, MAX_KEY)] = Node(node.value, place, place)
            return Node(entries, place)
        if isinstance(value, list | tuple):
            return Node([build(item, (*path, i)) for i, item in enumerate(value)], place)
        if isinstance(value, str):
            return Node(text(value, path, MAX_SCALAR), place)
        if isinstance(value, int):
            check(value in INTEGERS, "limit", _WIDE_INTEGER, path)
            return Node(value if isinstance(value, bool) else int(value), place)
        if isinstance(value, float):
            return Node(float(value), place)
        message = f"must be plain data, not {type(value).__name__}"
        check(value is None, "wrong-type", message, path)
        return Node(None, place)

    return Document(MAPPING, build(mapping, ()))
