"""From YAML text to a tree of values and their places, from parser events alone.

PyYAML's composer and constructors are never called: they recurse, resolve by YAML 1.1, keep the
last of duplicate keys and can be made to run code. What is wrong but can be read on from is noted,
with the value that was probably meant, so that one report holds it all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from resnet_builder.errors import Problem, SpecError, SpecPath
from resnet_builder.spec.scalars import AmbiguousError, resolve
from resnet_builder.spec.source import Document, Node, Place, Scalar, Source
from resnet_builder.spec.syntax import NO_ALIASES, NO_DIRECTIVES, NO_TAGS, syntax_problem

MAX_DEPTH = 32
MAX_NODES = 20_000
MAX_SCALAR = 4_096
MAX_KEY = 128
INTEGERS = range(-(2**63), 2**63)

HALF_PAIR = "half of a surrogate pair is no character"

_NO_TEXT = "?"
"""Stands in paths for a key that is no text."""

_TAG_PREFIX = "tag:yaml.org,2002:"


def parse_yaml(source: Source, *, start: int = 0, path: SpecPath = ()) -> Document:
    """Read YAML 1.2 text.

    Args:
        source: The text. It must hold no character that :func:`reading.checked` refuses.
        start: Where in it the YAML begins; what comes before counts in columns only.
        path: Where in a spec its values belong.

    Raises:
        SpecError: It is not YAML, or over a limit.
    """
    text = " " * start + source.text[start:]
    reader = _Reader(source, path)
    for event in _events(text, reader):
        reader.take(event)
    return reader.document()


def has_surrogates(text: str) -> bool:
    """Tell whether text holds half of a surrogate pair, which no encoding has a word for."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _events(text: str, reader: "_Reader") -> Iterator[yaml.Event]:
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_event():
            yield loader.get_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs
    # Not only YAMLErrors come out of PyYAML: "\UFFFFFFFF" is an OverflowError.
    except Exception as error:
        raise reader.fatal(syntax_problem(error, reader.source, loader.get_mark())) from error
    finally:
        loader.dispose()


@dataclass(frozen=True, slots=True)
class _Key:
    """The key of a mapping whose value comes next; the value of a bad key is dropped."""

    text: str
    place: Place
    is_good: bool


@dataclass(slots=True)
class _Open:
    """A mapping or a list whose end has not come yet."""

    node: Node
    path: SpecPath
    key: _Key | None = None


class _Reader:
    """Builds a tree of events, with a stack of its own instead of recursion."""

    def __init__(self, source: Source, path: SpecPath) -> None:
        self.source = source
        self.path = path
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self.nodes = 0
        self.documents = 0
        self.open: list[_Open] = []

    def document(self) -> Document:
        """Return what was read; nothing at all is null."""
        root = self.root or Node(None, self.source.place(0, 0))
        return Document(self.source, root, tuple(self.problems))

    def fatal(self, problem: Problem) -> SpecError:
        """Make the error that ends reading, with all that was noted before."""
        return SpecError([*self.problems, problem])

    def take(self, event: yaml.Event) -> None:
        """Take the parser's next event.

        Raises:
            SpecError: A limit is passed, or a second document begins.
        """
        if isinstance(event, yaml.DocumentStartEvent):
            self._begin_document(event)
        elif isinstance(event, yaml.NodeEvent):
            self._check_limits(event)
            self._refuse_extras(event)
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                self._add(Node(None, self._place(event)))
            else:
                self._begin_collection(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._add(self.open.pop().node)

    def _begin_document(self, event: yaml.DocumentStartEvent) -> None:
        self.documents += 1
        if self.documents > 1:
            message = "a second document begins here; a spec is a single one"
            raise self.fatal(self._place(event).problem("yaml-syntax", message))
        assert event.start_mark is not None
        assert event.end_mark is not None
        for number in range(event.start_mark.line, event.end_mark.line):
            line = self.source.lines[number]
            if line.startswith("%") and line.split("#")[0].split() != ["%YAML", "1.2"]:
                place = self.source.place(number, 0)
                self.problems.append(place.problem("yaml-syntax", NO_DIRECTIVES))

    def _check_limits(self, event: yaml.NodeEvent) -> None:
        self.nodes += 1
        size = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        most = MAX_KEY if self._expects_key() else MAX_SCALAR
        message = ""
        if self.nodes > MAX_NODES:
            message = f"more than {MAX_NODES} values"
        elif size > most:
            message = f"{size} characters are more than {most}"
        elif isinstance(event, yaml.CollectionStartEvent) and len(self.open) == MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH}"
        if message:
            raise self.fatal(self._place(event).problem("limit", message))

    def _refuse_extras(self, event: yaml.NodeEvent) -> None:
        """Note an anchor, an alias or a tag."""
        if event.anchor is not None:
            self._note(event, "yaml-alias", NO_ALIASES)
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = f"!!{tag.removeprefix(_TAG_PREFIX)}" if tag.startswith(_TAG_PREFIX) else tag
            self._note(event, "yaml-tag", f"'{shown}': {NO_TAGS}")

    def _begin_collection(self, event: yaml.NodeEvent) -> None:
        is_list = isinstance(event, yaml.SequenceStartEvent)
        node = Node([] if is_list else {}, self._place(event))
        self.open.append(_Open(node, self._path(event)))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        text, place = event.value, self._place(event)
        if has_surrogates(text):
            self._note(event, "yaml-syntax", HALF_PAIR)
            text = ""
        if self._expects_key():
            self._begin_entry(event, text)
        else:
            is_plain = event.style is None
            self._add(Node(self._resolved(event, text) if is_plain else text, place))

    def _resolved(self, event: yaml.ScalarEvent, text: str) -> Scalar:
        try:
            value = resolve(text)
        except AmbiguousError as error:
            self._note(event, "yaml-ambiguous", str(error), suggestion=error.spelling)
            return error.value
        if isinstance(value, int) and value not in INTEGERS:
            self._note(event, "limit", "whole numbers have at most 64 bits")
        return value

    def _begin_entry(self, event: yaml.ScalarEvent, text: str) -> None:
        """Take a key, and note what is wrong with it."""
        place = self._place(event)
        is_good = event.style is not None or self._is_text_key(event, text)
        earlier = self._entries().get(text)
        if is_good and earlier is not None:
            is_good = False
            self._note(event, "duplicate-key", f"given twice; the first is at {earlier.key_place}")
        self.open[-1].key = _Key(text, place, is_good)

    def _is_text_key(self, event: yaml.ScalarEvent, text: str) -> bool:
        """Tell whether a plain word is a key; note why not."""
        if text == "<<":
            self._note(event, "yaml-alias", "merge keys are not supported; use `extends`")
            return False
        quoted = f'"{text}"'
        try:
            if isinstance(resolve(text), str):
                return True
        except AmbiguousError as error:
            self._note(event, "yaml-ambiguous", str(error), suggestion=quoted)
        else:
            message = f"a key must be text, not {text or 'nothing'}"
            self._note(event, "wrong-type", message, suggestion=quoted if text else None)
        return False

    def _add(self, node: Node) -> None:
        """Put a complete value where it belongs."""
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        if isinstance(top.node.value, list):
            top.node.value.append(node)
        elif top.key is None:
            message = "a key must be text, not a mapping, a list or an alias"
            path = (*top.path, _NO_TEXT)
            self.problems.append(node.place.problem("wrong-type", message, path=path))
            top.key = _Key(_NO_TEXT, node.place, is_good=False)
        else:
            if top.key.is_good:
                self._entries()[top.key.text] = Node(node.value, node.place, top.key.place)
            top.key = None

    def _expects_key(self) -> bool:
        if not self.open or self.open[-1].key is not None:
            return False
        return isinstance(self.open[-1].node.value, dict)

    def _entries(self) -> dict[str, Node]:
        entries = self.open[-1].node.value
        assert isinstance(entries, dict)
        return entries

    def _path(self, event: yaml.NodeEvent) -> SpecPath:
        """Return the path of a value, or of a key, that comes next."""
        if not self.open:
            return self.path
        top = self.open[-1]
        if isinstance(top.node.value, list):
            return (*top.path, len(top.node.value))
        if top.key is not None:
            return (*top.path, top.key.text)
        return (*top.path, event.value if isinstance(event, yaml.ScalarEvent) else _NO_TEXT)

    def _note(
        self, event: yaml.NodeEvent, code: str, message: str, *, suggestion: str | None = None
    ) -> None:
        place, path = self._place(event), self._path(event)
        self.problems.append(place.problem(code, message, path=path, suggestion=suggestion))

    def _place(self, event: yaml.Event) -> Place:
        assert event.start_mark is not None
        return self.source.place(event.start_mark.line, event.start_mark.column)
