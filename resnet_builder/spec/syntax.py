"""PyYAML's complaints about text that is not YAML, in our words and at the place to mend."""

import re
from dataclasses import dataclass

import yaml

from resnet_builder.errors import Problem
from resnet_builder.spec.source import Place, Source

NO_ALIASES = "anchors and aliases are not supported; quote text that begins with `&` or `*`"
NO_TAGS = "tags are not supported; quote text that begins with `!`"
NO_DIRECTIVES = "of all directives only `%YAML 1.2` is supported"


@dataclass(frozen=True, slots=True)
class _Complaint:
    """How to say what PyYAML says.

    Attributes:
        problem: Pattern of what it found.
        context: Pattern of what it was doing.
        message: What we say; ``{0}`` is the pattern's group, ``{begun}`` where the context began.
        at_context: Whether to point at where the context began.
        code: Ours.
    """

    message: str
    problem: str = ""
    context: str = ""
    at_context: bool = False
    code: str = "yaml-syntax"


_COMPLAINTS = (
    _Complaint(NO_ALIASES, context="an? (?:alias|anchor)", code="yaml-alias", at_context=True),
    _Complaint(NO_TAGS, problem="tag handle", code="yaml-tag", at_context=True),
    _Complaint(NO_TAGS, context="a tag$", code="yaml-tag", at_context=True),
    _Complaint(NO_DIRECTIVES, context="a directive", at_context=True),
    _Complaint(NO_DIRECTIVES, problem="YAML document|YAML directive|duplicate tag"),
    _Complaint("a tab cannot indent or separate: use spaces", problem=r"character '\\t'"),
    _Complaint(
        "text cannot begin with `{0}` unless it is quoted",
        problem="character '(.)' that cannot start",
    ),
    _Complaint(
        "this `[` is never closed", problem=r"or '\]', but got '<stream end>'", at_context=True
    ),
    _Complaint(
        "this `{{` is never closed", problem="or '}', but got '<stream end>'", at_context=True
    ),
    _Complaint(
        "expected `,` or `{0}`, for the bracket opened at {begun}", problem=r"or '([\]}])', but"
    ),
    _Complaint(
        "this quote is never closed",
        problem="unexpected end of stream|unexpected document separator",
        at_context=True,
    ),
    _Complaint(
        "`\\{0}` is no escape; write `\\\\` for a backslash, or use single quotes",
        problem="unknown escape character '(.*)'",
    ),
    _Complaint(
        "`:` cannot stand here: indent all keys of a mapping alike, put a space after each "
        "key's colon, and quote text that holds a colon and a space",
        problem="mapping values are not allowed",
    ),
    _Complaint(
        "this is no `key: value`: there is no colon with a space after it",
        problem="could not find expected ':'",
        at_context=True,
    ),
    _Complaint(
        "a list cannot begin here: put it on lines of its own, or write [a, b]",
        problem="sequence entries are not allowed",
    ),
    _Complaint(
        "a key cannot stand here: give the mapping lines of its own", problem="mapping keys are not"
    ),
    _Complaint(
        "this fits neither the indentation of what began at {begun} nor the value before it",
        problem="expected <block end>",
    ),
    _Complaint("expected a value", problem="expected the node content"),
    _Complaint("the spec ended before this", problem="expected '<document start>'"),
)


def syntax_problem(error: Exception, source: Source, reached: yaml.Mark) -> Problem:
    """Say what is wrong with a text that PyYAML cannot read.

    Args:
        error: What PyYAML raised; not always a ``YAMLError``.
        source: What it was reading.
        reached: How far it got.
    """
    if not isinstance(error, yaml.MarkedYAMLError):
        # An escape beyond Unicode ends in chr()'s own error.
        return _place(source, reached).problem("yaml-syntax", f"this cannot be read: {error}")
    found, doing = error.problem or "", error.context or ""
    context = _place(source, error.context_mark or error.problem_mark or reached)
    place = _place(source, error.problem_mark or reached)
    for complaint in _COMPLAINTS:
        match = re.search(complaint.problem, found)
        if match and re.search(complaint.context, doing):
            message = complaint.message.format(*match.groups(), begun=context)
            at = context if complaint.at_context else place
            return at.problem(complaint.code, message)
    return place.problem("yaml-syntax", f"{doing} {found}".strip())


def _place(source: Source, mark: yaml.Mark) -> Place:
    return source.place(mark.line, mark.column)
