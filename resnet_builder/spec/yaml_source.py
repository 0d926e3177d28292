"""YAML sources: PyYAML's composer within limits, YAML 1.2 scalars, and source positions.

Nothing is constructed by PyYAML, so no tag runs code. What is wrong but can be read on from is
noted, with the value that was probably meant, so that one report holds all problems.
"""

import errno
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from resnet_builder.errors import Problem, SpecError, SpecPath, StorageError, dotted

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_SCALAR = 4_096
MAX_KEY = 128
INTEGERS = range(-(2**63), 2**63)

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
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
    lines: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(self.text.split("\n")))

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
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    place: Place
    key_place: Place | None = None


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
    """Read a YAML file.

    Args:
        path: The file.
        named_at: Where another file names it, if one does; a file that cannot be one is reported
            there.

    Raises:
        SpecError: There is no such file, it is no regular file, too large, or not YAML in UTF-8.
        StorageError: It cannot be read.
    """
    try:
        data = _read_regular_file(path)
        if len(data) > MAX_BYTES:
            raise _Refusal("limit", f"the file is larger than {MAX_BYTES // 1024} KiB")
    except _Refusal as refusal:
        if named_at is None:
            problem = Problem(refusal.code, "", str(refusal), file=str(path))
        else:
            place, at = named_at
            problem = place.problem("extends", f"{path}: {refusal}", path=at)
        raise SpecError([problem]) from None
    return parse_yaml(source_of(_decode(data, path), str(path), path=path))


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
        SpecError: There is a character in it that no reader of YAML has to take.
    """
    source = Source(name, _with_unix_lines(text), path, has_lines)
    match = _REFUSED_CHARACTER.search(source.text)
    if match is None:
        return source
    what = f"character U+{ord(match[0]):04X} cannot stand in YAML"
    hint = "; is the file UTF-16? save it as UTF-8" if match[0] == "\0" else ""
    place = _place_after(source.text[: match.start()], source)
    raise SpecError([place.problem("yaml-syntax", what + hint)])


def parse_yaml(source: Source, *, start: int = 0, path: SpecPath = ()) -> Document:
    """Read YAML 1.2 text.

    Args:
        source: The text, as :func:`source_of` makes it.
        start: Index at which the YAML begins; what comes before counts in columns only.
        path: Place in the spec to which the values belong.

    Raises:
        SpecError: It is not YAML, or over a limit.
    """
    composer = _BoundedComposer(source, " " * start + source.text[start:])
    try:
        composed = composer.get_single_node()
    # Not only YAMLErrors come out of PyYAML: "\UFFFFFFFF" is an OverflowError.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problem = _syntax_problem(error, source, composer.get_mark())
        before = _NodeReader(source, composer.extras)
        if composer.unfinished is not None:
            before.node(composer.unfinished, path)
        raise SpecError([*composer.problems, *before.problems, problem]) from error
    finally:
        composer.dispose()
    reader = _NodeReader(source, composer.extras)
    root = Node(None, source.place(0, 0)) if composed is None else reader.node(composed, path)
    return Document(source, root, (*composer.problems, *reader.problems))


def parse_plain(text: str, name: str = "<text>") -> Any:
    """Plain data of YAML text.

    Raises:
        SpecError: It has problems.
    """
    document = parse_yaml(source_of(text, name))
    if document.problems:
        raise SpecError(document.problems)
    return plain(document.root)


MAPPING = Source("<mapping>", has_lines=False)


def document_of(mapping: Mapping[str, object]) -> Document:
    """Document of plain data.

    Raises:
        SpecError: There is something in it that YAML has no word for, or too much of it.
    """
    count = 0
    place = Place(MAPPING)

    def build(value: object, path: SpecPath) -> Node:
        nonlocal count
        count += 1
        if count > MAX_NODES:
            raise _refused("limit", f"more than {MAX_NODES} values", path)
        if isinstance(value, Mapping | list | tuple) and len(path) == MAX_DEPTH:
            raise _refused("limit", f"nested deeper than {MAX_DEPTH}", path)
        if isinstance(value, Mapping):
            entries = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    raise _refused("wrong-type", f"a key must be text, not {key!r}", path)
                node = build(item, (*path, key))
                entries[_plain_text(key, path, MAX_KEY)] = Node(node.value, place, place)
            return Node(entries, place)
        if isinstance(value, list | tuple):
            return Node([build(item, (*path, i)) for i, item in enumerate(value)], place)
        return Node(_plain_scalar(value, path), place)

    return Document(MAPPING, build(mapping, ()))


def resolve(text: str) -> Scalar:
    """Meaning of a plain (unquoted) word in YAML 1.2, section 10.3.2.

    Raises:
        AmbiguousError: YAML 1.1 reads it otherwise, and so do many programs.
    """
    _refuse_ambiguous(text)
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


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
    **{
        f"{sign}{word}": float(f"{sign}inf")
        for sign in ("", "+", "-")
        for word in (".inf", ".Inf", ".INF")
    },
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

# YAML 1.1 reads these otherwise.
_SWITCHES = {
    **dict.fromkeys(("yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("no", "No", "NO", "off", "Off", "OFF"), False),
}
_ZERO_FIRST = re.compile(r"([-+]?)0+([0-9]+)")
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")


def _refuse_ambiguous(text: str) -> None:
    if text in _SWITCHES:
        value = _SWITCHES[text]
        spelling = "true" if value else "false"
        raise AmbiguousError(
            f"'{text}' is {spelling} in YAML 1.1 and text in YAML 1.2: "
            f'write {spelling} or "{text}"',
            value,
            spelling,
        )
    if match := _ZERO_FIRST.fullmatch(text):
        sign, digits = match[1], match[2].lstrip("0") or "0"
        decimal = f"{sign}{digits}".removeprefix("+")
        octal = f"0o{digits} for octal, " if not sign and _OCTAL.fullmatch(f"0o{digits}") else ""
        raise AmbiguousError(
            f"'{text}' is ambiguous, as YAML 1.1 reads a leading zero as octal: "
            f'write {decimal}, {octal}or "{text}" for text',
            int(decimal),
            decimal,
        )
    bare = text.replace("_", "")
    if bare != text and _UNDERSCORED.fullmatch(text):
        raise AmbiguousError(
            f"'{text}' is a number in YAML 1.1 and text in YAML 1.2: write {bare} or \"{text}\"",
            float(bare) if not _INTEGER.fullmatch(bare) else int(bare),
            bare,
        )


_NO_ALIASES = "anchors and aliases are not supported; quote text that begins with `&` or `*`"
_NO_TAGS = "tags are not supported; quote text that begins with `!`"
_NO_DIRECTIVES = "of all directives only `%YAML 1.2` is supported"
_HALF_PAIR = "half of a surrogate pair is no character"

_TAG_PREFIX = "tag:yaml.org,2002:"
_ALIAS = "alias"  # the tag of nodes that stand for aliases; no other node has a tag


class _BoundedComposer(yaml.SafeLoader):
    """PyYAML's composer with bounds on what it composes, and without tags, anchors and aliases.

    Each event is looked at before a node is made of it. So the composer's recursion is bounded, and
    an alias never makes a tree that is larger than its text.

    Attributes:
        problems: Problems of directives.
        extras: Codes and messages on nodes with a tag or an anchor, and on aliases.
        unfinished: The top-level collection, with as much as has been composed.
    """

    def __init__(self, source: Source, text: str) -> None:
        super().__init__(text)
        self.source = source
        self.problems: list[Problem] = []
        self.extras: dict[yaml.Node, list[tuple[str, str]]] = {}
        self.unfinished: yaml.Node | None = None
        self._num_nodes = 0
        self._depth = 0

    def compose_document(self) -> yaml.Node | None:
        """Compose a document; note directives, most of which PyYAML ignores."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs
        for number in range(event.start_mark.line, event.end_mark.line):
            line = self.source.lines[number]
            if line.startswith("%") and line.split("#")[0].split() != ["%YAML", "1.2"]:
                place = self.source.place(number, 0)
                self.problems.append(place.problem("yaml-syntax", _NO_DIRECTIVES))
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose the next node of ``parent``; a key has no index."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.unfinished = self.unfinished or parent
        is_key = isinstance(parent, yaml.MappingNode) and index is None
        self._check_limits(event, MAX_KEY if is_key else MAX_SCALAR)
        extras = list(_extras(event))
        node: yaml.Node
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            node = yaml.ScalarNode(_ALIAS, "", event.start_mark, event.end_mark)  # type: ignore[arg-type]
        else:
            event.anchor = event.tag = None
            self._depth += 1
            node = super().compose_node(parent, index)  # type: ignore[assignment]
            self._depth -= 1
        if extras:
            self.extras[node] = extras
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Leave tags out: the meaning of a scalar is given by :func:`resolve`."""
        return ""

    def _check_limits(self, event: yaml.NodeEvent, max_scalar: int) -> None:
        self._num_nodes += 1
        size = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        message = ""
        if self._num_nodes > MAX_NODES:
            message = f"more than {MAX_NODES} values"
        elif size > max_scalar:
            message = f"{size} characters are more than {max_scalar}"
        elif isinstance(event, yaml.CollectionStartEvent) and self._depth == MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH}"
        if message:
            place = _place(self.source, event.start_mark)
            raise SpecError([*self.problems, place.problem("limit", message)])


def _extras(event: yaml.NodeEvent) -> Iterator[tuple[str, str]]:
    if event.anchor is not None:
        yield "yaml-alias", _NO_ALIASES
    tag = getattr(event, "tag", None)
    if tag is not None:
        shown = f"!!{tag.removeprefix(_TAG_PREFIX)}" if tag.startswith(_TAG_PREFIX) else tag
        yield "yaml-tag", f"'{shown}': {_NO_TAGS}"


class _NodeReader:
    """Our nodes of PyYAML's: keys checked, scalars resolved.

    Args:
        source: Source of the nodes.
        extras: Codes and messages on nodes, as :class:`_BoundedComposer` notes them.
    """

    def __init__(self, source: Source, extras: dict[yaml.Node, list[tuple[str, str]]]) -> None:
        self.source = source
        self.extras = extras
        self.problems: list[Problem] = []

    def node(self, node: yaml.Node, path: SpecPath) -> Node:
        """Our node of one of PyYAML's."""
        place = self._note_extras(node, path)
        if isinstance(node, yaml.MappingNode):
            return Node(self._entries(node, path), place)
        if isinstance(node, yaml.SequenceNode):
            items = [self.node(item, (*path, i)) for i, item in enumerate(node.value)]
            return Node(items, place)
        return Node(self._scalar(node, path), place)

    def _entries(self, mapping: yaml.MappingNode, path: SpecPath) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in mapping.value:
            text = key.value if isinstance(key, yaml.ScalarNode) else "?"
            text = "?" if _is_alias(key) else self._without_surrogates(key, text, (*path, text))
            at = (*path, text)
            place = self._note_extras(key, at)
            is_good = self._is_good_key(key, at)
            if is_good and text in entries:
                first = entries[text].key_place
                self._note(key, at, "duplicate-key", f"given twice; the first is at {first}")
            read = self.node(value, at)
            if is_good and text not in entries:
                entries[text] = Node(read.value, read.place, place)
        return entries

    def _is_good_key(self, key: yaml.Node, at: SpecPath) -> bool:
        """Tell whether a key is text; note why not."""
        if not isinstance(key, yaml.ScalarNode) or _is_alias(key):
            message = "a key must be text, not a mapping, a list or an alias"
            self._note(key, at, "wrong-type", message)
            return False
        text: str = key.value
        if key.style is not None:
            return True
        if text == "<<":
            self._note(key, at, "yaml-alias", "merge keys are not supported; use `extends`")
            return False
        try:
            if isinstance(resolve(text), str):
                return True
        except AmbiguousError as error:
            self._note(key, at, "yaml-ambiguous", str(error), f'"{text}"')
        else:
            message = f"a key must be text, not {text or 'nothing'}"
            self._note(key, at, "wrong-type", message, f'"{text}"' if text else None)
        return False

    def _scalar(self, node: yaml.Node, path: SpecPath) -> Scalar:
        if _is_alias(node):
            return None
        text = self._without_surrogates(node, node.value, path)
        if not isinstance(node, yaml.ScalarNode) or node.style is not None:
            return text
        try:
            value = resolve(text)
        except AmbiguousError as error:
            self._note(node, path, "yaml-ambiguous", str(error), error.spelling)
            return error.value
        if isinstance(value, int) and value not in INTEGERS:
            self._note(node, path, "limit", "whole numbers have at most 64 bits")
        return value

    def _without_surrogates(self, node: yaml.Node, text: str, path: SpecPath) -> str:
        if not _has_surrogates(text):
            return text
        self._note(node, path, "yaml-syntax", _HALF_PAIR)
        return ""

    def _note_extras(self, node: yaml.Node, path: SpecPath) -> Place:
        for code, message in self.extras.get(node, ()):
            self._note(node, path, code, message)
        return _place(self.source, node.start_mark)

    def _note(
        self,
        node: yaml.Node,
        path: SpecPath,
        code: str,
        message: str,
        suggestion: str | None = None,
    ) -> None:
        place = _place(self.source, node.start_mark)
        self.problems.append(place.problem(code, message, path=path, suggestion=suggestion))


def _is_alias(node: yaml.Node) -> bool:
    return node.tag == _ALIAS


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _place(source: Source, mark: Any) -> Place:
    return source.place(mark.line, mark.column)


class _Refusal(Exception):
    """A path that cannot be that of a spec."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def _read_regular_file(path: Path) -> bytes:
    """Read one byte more than allowed at most; never wait for a pipe or a device."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise _Refusal("wrong-type", f"this is {what}, not a file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except ValueError:  # a path with a NUL, or with half of a surrogate pair
        raise _Refusal("unknown-name", "there is no such file") from None
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise _Refusal("unknown-name", "there is no such file") from None
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


# What YAML 1.2.2 does not call printable (section 5.1), and what YAML 1.1, which PyYAML reads,
# takes for line breaks beside those of 1.2 (NEL, LS and PS).
_REFUSED_CHARACTER = re.compile(
    "[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def _decode(data: bytes, path: Path) -> str:
    if data.startswith(_UTF16_MARKS):
        place = Source(str(path), path=path).place(0, 0)
        message = "the file is UTF-16; save it as UTF-8"
        raise SpecError([place.problem("yaml-syntax", message)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The error counts from behind a byte order mark, and holds what it counts in.
        source = Source(str(path), _with_unix_lines(error.object.decode(errors="replace")), path)
        place = _place_after(_with_unix_lines(error.object[: error.start].decode()), source)
        message = f"byte 0x{error.object[error.start]:02X} is not UTF-8; save the file as UTF-8"
        raise SpecError([place.problem("yaml-syntax", message)]) from error


def _with_unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place_after(before: str, source: Source) -> Place:
    return source.place(before.count("\n"), len(before) - before.rfind("\n") - 1)


def _plain_scalar(value: object, path: SpecPath) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value not in INTEGERS:
            raise _refused("limit", "whole numbers have at most 64 bits", path)
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return _plain_text(value, path, MAX_SCALAR)
    raise _refused("wrong-type", f"must be plain data, not {type(value).__name__}", path)


def _plain_text(value: str, path: SpecPath, most: int) -> str:
    if len(value) > most:
        raise _refused("limit", f"{len(value)} characters are more than {most}", path)
    if _has_surrogates(value):
        raise _refused("yaml-syntax", _HALF_PAIR, path)
    return str(value)


def _refused(code: str, message: str, path: SpecPath) -> SpecError:
    return SpecError([Place(MAPPING).problem(code, message, path=path)])


# PyYAML's usual complaints: a pattern of "context: problem", the message instead of it, the code,
# and whether to point at where the context began. Others are shown in PyYAML's own words.
_COMPLAINTS = (
    ("an? (?:alias|anchor):", _NO_ALIASES, "yaml-alias", True),
    ("tag handle|a tag:", _NO_TAGS, "yaml-tag", True),
    ("a directive:|a %TAG|a %YAML", _NO_DIRECTIVES, "yaml-syntax", True),
    ("YAML document|YAML directive|duplicate tag", _NO_DIRECTIVES, "yaml-syntax", False),
    (r"character '\\t'", "a tab cannot indent or separate: use spaces", "yaml-syntax", False),
    (
        "character '(.)' that cannot start",
        "text cannot begin with `{0}` unless it is quoted",
        "yaml-syntax",
        False,
    ),
    (
        "another document",
        "a second document begins here; a spec is a single one",
        "yaml-syntax",
        False,
    ),
    ("flow sequence:.*stream end", "this `[` is never closed", "yaml-syntax", True),
    ("flow mapping:.*stream end", "this `{{` is never closed", "yaml-syntax", True),
    ("quoted scalar:.*unexpected", "this quote is never closed", "yaml-syntax", True),
    (
        "mapping values are not allowed",
        "`:` cannot stand here: indent all keys of a mapping alike, put a space after each "
        "key's colon, and quote text that holds a colon and a space",
        "yaml-syntax",
        False,
    ),
    (
        "could not find expected ':'",
        "this is no `key: value`: there is no colon with a space after it",
        "yaml-syntax",
        True,
    ),
)


def _syntax_problem(error: Exception, source: Source, reached: yaml.Mark) -> Problem:
    """Problem of a text that PyYAML cannot read."""
    if not isinstance(error, yaml.MarkedYAMLError):
        # An escape beyond Unicode ends in chr()'s own error.
        return _place(source, reached).problem("yaml-syntax", f"this cannot be read: {error}")
    place = _place(source, error.problem_mark or reached)
    context = _place(source, error.context_mark) if error.context_mark else place
    said = f"{error.context or ''}: {error.problem or ''}"
    for pattern, message, code, at_context in _COMPLAINTS:
        if match := re.search(pattern, said):
            return (context if at_context else place).problem(code, message.format(*match.groups()))
    began = f" {error.context} that began at {context}," if error.context else ""
    return place.problem("yaml-syntax", f"this is not YAML:{began} {error.problem}")
